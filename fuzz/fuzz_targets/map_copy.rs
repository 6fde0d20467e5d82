#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    ovs_decoders::check("map_copy", bytes);
});
