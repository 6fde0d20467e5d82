#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    ovs_decoders::check("fragment", bytes);
});
