//! `langid`: which language a text is in.
//!
//! The result is one line of JSON whose members always stand in this order:
//!
//! ```json
//! {"lang":"deu","script":"Latin","confidence":1.000,"reliable":true}
//! ```
//!
//! `lang` is the ISO 639-3 code, `confidence` lies between 0 and 1 with three digits. A text without
//! a letter (empty, digits, punctuation) is not an error: its `lang` and `script` are `null`, so
//! that a file of lines has an answer for every line. Bytes that are no UTF-8 fail the task.

use std::io::Write;

use crate::handler::{Handler, Outcome};

/// Bytes of a payload that are read: 4 KiB. The distribution of trigrams has settled long before,
/// and the limit keeps the longest payload within the time that a worker thread may spend inline.
pub const LANGID_PAYLOAD_READ_MAX: usize = 4_096;

/// Above the longest result (a script of 10 letters) and the longest failure message.
const RESULT_LEN_MAX: usize = 128;

/// The skill `langid`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Langid;

impl Handler for Langid {
    fn result_len_max(&self, _payload_len: usize) -> usize {
        RESULT_LEN_MAX
    }

    fn run(&self, payload: &[u8], result: &mut [u8]) -> Outcome {
        let text = match std::str::from_utf8(payload) {
            Ok(text) => head(text, LANGID_PAYLOAD_READ_MAX),
            Err(error) => {
                let message = format_args!(
                    "byte {} of the payload is not UTF-8; langid takes text in UTF-8",
                    error.valid_up_to()
                );
                return Outcome::Failed(written(result, message));
            }
        };
        let len = match whatlang::detect(text) {
            Some(info) => written(
                result,
                format_args!(
                    r#"{{"lang":"{}","script":"{}","confidence":{:.3},"reliable":{}}}"#,
                    info.lang().code(),
                    info.script().name(),
                    info.confidence(),
                    info.is_reliable()
                ),
            ),
            None => written(
                result,
                format_args!(
                    r#"{{"lang":null,"script":null,"confidence":0.000,"reliable":false}}"#
                ),
            ),
        };
        Outcome::Done(len)
    }
}

/// The first `len_max` bytes of `text`, less those of a character that would be cut.
fn head(text: &str, len_max: usize) -> &str {
    if text.len() <= len_max {
        return text;
    }
    let end = (0..=len_max)
        .rev()
        .find(|&end| text.is_char_boundary(end))
        .unwrap_or(0);
    &text[..end]
}

/// Writes `text` to the head of `space` and says how long it was. Every caller's text is shorter
/// than [`RESULT_LEN_MAX`].
fn written(space: &mut [u8], text: std::fmt::Arguments<'_>) -> usize {
    let free = space.len();
    let mut rest = space;
    rest.write_fmt(text)
        .expect("the longest answer fits RESULT_LEN_MAX");
    free - rest.len()
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    #[test]
    fn known_texts_are_told_apart() {
        let table = [
            (
                "All human beings are born free and equal in dignity and rights.",
                "eng",
                "Latin",
            ),
            (
                "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
                "deu",
                "Latin",
            ),
            (
                "Все люди рождаются свободными и равными в своем достоинстве.",
                "rus",
                "Cyrillic",
            ),
            (
                "すべての人間は、生まれながらにして自由である。",
                "jpn",
                "Hiragana",
            ),
            ("모든 인간은 태어날 때부터 자유로우며", "kor", "Hangul"),
            ("Όλοι οι άνθρωποι γεννιούνται ελεύθεροι", "ell", "Greek"),
        ];
        for (text, lang, script) in table {
            let result = run(&Langid, text.as_bytes()).expect("text");
            let json: serde_json::Value = serde_json::from_str(&result).expect("JSON");
            assert_eq!(json["lang"], lang, "{result}");
            assert_eq!(json["script"], script, "{result}");
            assert!(
                json["confidence"]
                    .as_f64()
                    .is_some_and(|c| (0.0..=1.0).contains(&c))
            );
        }
    }

    #[test]
    fn the_members_stand_in_their_order_with_three_digits() {
        let result = run(&Langid, "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι".as_bytes());
        assert_eq!(
            result.as_deref(),
            Ok(r#"{"lang":"ell","script":"Greek","confidence":1.000,"reliable":true}"#)
        );
    }

    #[test]
    fn a_text_without_letters_has_no_language_and_is_no_failure() {
        for text in ["", "   ", "1948-12-10"] {
            assert_eq!(
                run(&Langid, text.as_bytes()).as_deref(),
                Ok(r#"{"lang":null,"script":null,"confidence":0.000,"reliable":false}"#),
                "{text:?}"
            );
        }
    }

    #[test]
    fn bytes_that_are_no_text_fail_with_their_place() {
        let error = run(&Langid, b"abc\xff").expect_err("no UTF-8");
        assert_eq!(
            error,
            "byte 3 of the payload is not UTF-8; langid takes text in UTF-8"
        );
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        // The limit falls inside a three-byte character, and the tail is another language.
        let text = "す".repeat(2_000) + &"Ω".repeat(2_000);
        let head = "す".repeat(LANGID_PAYLOAD_READ_MAX / 3);
        assert_eq!(run(&Langid, text.as_bytes()), run(&Langid, head.as_bytes()));
    }

    #[test]
    fn the_same_text_has_the_same_answer_every_time() {
        let text = include_str!("../../data/udhr.txt");
        for line in text.lines().step_by(40) {
            let first = run(&Langid, line.as_bytes());
            for _ in 0..8 {
                assert_eq!(run(&Langid, line.as_bytes()), first, "{line}");
            }
        }
    }
}
