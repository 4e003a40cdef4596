//! `sha256`: the SHA-256 of the payload as 64 lower-case hex digits, the text that `sha256sum`
//! prints, so that a person can compare the two.

use aws_lc_rs::digest::{SHA256, digest};

use crate::handler::{Handler, Outcome};

const HEX_LEN: usize = 64;

/// The skill `sha256`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sha256;

impl Handler for Sha256 {
    fn result_len_max(&self, _payload_len: usize) -> usize {
        HEX_LEN
    }

    fn run(&self, payload: &[u8], result: &mut [u8]) -> Outcome {
        let digest = digest(&SHA256, payload);
        let digits = b"0123456789abcdef";
        for (pair, byte) in result.chunks_exact_mut(2).zip(digest.as_ref()) {
            pair[0] = digits[usize::from(byte >> 4)];
            pair[1] = digits[usize::from(byte & 15)];
        }
        Outcome::Done(HEX_LEN)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::Sha256;

    #[test]
    fn the_vectors_of_fips_180_come_out() {
        let table: [(&[u8], &str); 3] = [
            (
                b"",
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            ),
            (
                b"abc",
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            (
                b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
                "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
            ),
        ];
        for (payload, hex) in table {
            assert_eq!(run(&Sha256, payload).as_deref(), Ok(hex));
        }
    }
}
