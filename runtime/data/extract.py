#!/usr/bin/env python3
"""Makes udhr.txt: one paragraph of the Universal Declaration of Human Rights a line.

usage: extract.py DECLARATION_FOLDER > udhr.txt

DECLARATION_FOLDER is the folder `declaration` of the package `udhr` 6.0.0, which holds one HTML
file for each translation. Languages are taken in the order below; of each file, every <p> in
document order, with its white space folded to single blanks. Nothing else is changed.
"""

import html
import pathlib
import re
import sys

# The languages that the skill `langid` tells apart, under the names of their translations.
TRANSLATIONS = """
afr aka_asante amh arb azj_latn bel ben bul cat ces cmn_hans cmn_hant cym dan deu_1996
ell_monotonic eng epo est fin fra guj heb hin hrv hun hye ind ita jav jpn kan kat khm kor lat
lav lit mal mar mkd mya nep nld nob pan pes_1 pol por_PT ron_2006 rus sin slk slv sna spa
srp_cyrl swe tam tel tgl tha tuk_latn tur ukr urd uzn_latn vie ydd zul
""".split()


def paragraphs(page: str):
    for paragraph in re.findall(r"<p[^>]*>(.*?)</p>", page, re.DOTALL):
        text = html.unescape(re.sub(r"<[^>]+>", "", paragraph))
        text = " ".join(text.split())
        if text:
            yield text


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    for name in TRANSLATIONS:
        for text in paragraphs((folder / f"{name}.html").read_text(encoding="utf-8")):
            print(text)


if __name__ == "__main__":
    main()
