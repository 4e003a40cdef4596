#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ramjet_fuzz::agent::agent(data);
});
