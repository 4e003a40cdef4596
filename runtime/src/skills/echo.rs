//! `echo`: the payload is the result. It measures the path and nothing else.

use crate::handler::{Handler, Outcome};

/// The skill `echo`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

impl Handler for Echo {
    fn result_len_max(&self, payload_len: usize) -> usize {
        payload_len
    }

    fn run(&self, payload: &[u8], result: &mut [u8]) -> Outcome {
        result[..payload.len()].copy_from_slice(payload);
        Outcome::Done(payload.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::Echo;

    #[test]
    fn the_result_is_the_payload() {
        assert_eq!(run(&Echo, b"Guten Morgen"), Ok("Guten Morgen".to_owned()));
        assert_eq!(run(&Echo, b""), Ok(String::new()));
    }
}
