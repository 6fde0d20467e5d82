//! Keys of presets: what objects are encrypted under is random, and kept encrypted under a key of the operator's.
//!
//! Another operator's key is another wrapping (`rotate.rs`): no object is written again. A key that does not fit is known at once by the
//! tag.

use super::secrets::Secrets;
use ovs_api::{Problem, ProblemKind};
use ovs_cluster::catalogue::{PresetRecord, WrappedKey};
use ovs_remote::Secret;
use ovs_volume::Chance;
use ring::{aead, digest};
use uuid::Uuid;

/// Bytes of a key.
pub(super) const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;

/// The key that a secret is: 64 hexadecimal digits.
pub(super) fn parse(secret: &Secret, reference: &str) -> Result<[u8; KEY_BYTES], Problem> {
    let key = from_hex(secret.reveal()).and_then(|bytes| bytes.try_into().ok());
    key.ok_or_else(|| {
        let detail = format!(
            "key: {reference} holds no key of 64 hexadecimal digits: make one with openssl rand -hex 32"
        );
        Problem::new(ProblemKind::Conflict, detail)
    })
}

/// A new key, wrapped.
pub(super) fn make(
    operators: &[u8; KEY_BYTES],
    preset: Uuid,
    number: u32,
    chance: &dyn Chance,
) -> WrappedKey {
    let random: Vec<u8> = (0..4).flat_map(|_| chance.uuid().into_bytes()).collect();
    let mut key = [0; KEY_BYTES];
    key.copy_from_slice(digest::digest(&digest::SHA256, &random).as_ref());
    wrap(operators, preset, number, &key, chance)
}

/// A key of a preset under a key of the operator's.
pub(super) fn wrap(
    operators: &[u8; KEY_BYTES],
    preset: Uuid,
    number: u32,
    key: &[u8; KEY_BYTES],
    chance: &dyn Chance,
) -> WrappedKey {
    let mut nonce = [0; NONCE_BYTES];
    nonce.copy_from_slice(&digest::digest(&digest::SHA256, chance.uuid().as_bytes()).as_ref()[..NONCE_BYTES]);
    let mut sealed = key.to_vec();
    sealing_key(operators)
        .seal_in_place_append_tag(
            aead::Nonce::assume_unique_for_key(nonce),
            aead::Aad::from(bound_to(preset, number)),
            &mut sealed,
        )
        .expect("32 bytes are not too many for AES-GCM");
    WrappedKey { number, wrapped: to_hex(&[&nonce[..], &sealed].concat()) }
}

/// The key itself.
pub(super) fn unwrap(
    operators: &[u8; KEY_BYTES],
    preset: &PresetRecord,
    key: &WrappedKey,
) -> Result<[u8; KEY_BYTES], Problem> {
    let damaged = || {
        Problem::new(
            ProblemKind::Damaged,
            format!("preset {}: its key {} is damaged", preset.name, key.number),
        )
    };
    let bytes = from_hex(&key.wrapped).ok_or_else(damaged)?;
    let (nonce, sealed) = bytes.split_at_checked(NONCE_BYTES).ok_or_else(damaged)?;
    let nonce = aead::Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged())?;
    let mut sealed = sealed.to_vec();
    let associated = aead::Aad::from(bound_to(preset.uuid, key.number));
    let plain = sealing_key(operators).open_in_place(nonce, associated, &mut sealed).map_err(|_| {
        let place = preset.key.as_deref().unwrap_or_default();
        let detail = format!(
            "preset {}: the key in {place} is not the one that its key {} was encrypted under, or what is stored of that is \
             damaged: put the right one back, or the record",
            preset.name, key.number
        );
        Problem::new(ProblemKind::Conflict, detail)
    })?;
    plain.try_into().map_err(|_| damaged())
}

/// A newer record of a preset is taken for what it says only where its keys are those of the one that is known: whoever can write
/// to a drive can write a record. It takes both keys of the operator.
pub(super) async fn check_are_the_same(
    known: &PresetRecord,
    newer: &PresetRecord,
    secrets: &Secrets,
) -> Result<(), Problem> {
    let operators = async |record: &PresetRecord| match &record.key {
        Some(place) => parse(&secrets.key(place).await?, place).map(Some),
        None => Ok(None),
    };
    let (Some(old), Some(new)) = (operators(known).await?, operators(newer).await?) else { return Ok(()) };
    for key in &known.keys {
        let is_it = |other: &&WrappedKey| other.number == key.number;
        let other = newer.keys.iter().find(is_it).map(|other| unwrap(&new, newer, other)).transpose()?;
        if other != Some(unwrap(&old, known, key)?) {
            let detail = format!("preset {}: a drive has another key {} of it", known.name, key.number);
            return Err(Problem::new(ProblemKind::Damaged, detail));
        }
    }
    Ok(())
}

fn sealing_key(operators: &[u8; KEY_BYTES]) -> aead::LessSafeKey {
    aead::LessSafeKey::new(aead::UnboundKey::new(&aead::AES_256_GCM, operators).expect("32 bytes"))
}

/// A wrapped key is no other preset's and of no other number.
fn bound_to(preset: Uuid, number: u32) -> Vec<u8> {
    [b"ovs preset key", &preset.as_bytes()[..], &number.to_le_bytes()].concat()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovs_cluster::catalogue::{CompressionRecord, FORMAT};
    use ovs_units::Name;
    use ovs_volume::SystemChance;

    #[test]
    fn a_key_comes_back_under_the_operators_key_alone() {
        let (operators, preset) = ([7; KEY_BYTES], Uuid::from_u128(1));
        let (one, other) =
            (make(&operators, preset, 1, &SystemChance), make(&operators, preset, 1, &SystemChance));
        let record = |uuid| PresetRecord {
            format: FORMAT,
            uuid,
            name: Name::new("p").unwrap(),
            version: 1,
            compression: CompressionRecord::None,
            policies: Vec::new(),
            fragment_bytes: 4 << 20,
            key: Some("file:/k".into()),
            keys: vec![one.clone()],
            encrypts_under: None,
            labels: Default::default(),
            created_ms: 0,
            request: serde_json::Value::Null,
        };
        let key = unwrap(&operators, &record(preset), &one).unwrap();
        assert_ne!(key, unwrap(&operators, &record(preset), &other).unwrap(), "no two keys are the same");
        assert!(!one.wrapped.contains(&to_hex(&key)));
        let again = wrap(&[8; KEY_BYTES], preset, 1, &key, &SystemChance);
        assert_eq!(unwrap(&[8; KEY_BYTES], &record(preset), &again).unwrap(), key, "the same, under another");
        unwrap(&operators, &record(preset), &again).unwrap_err();
        let wrong = unwrap(&[8; KEY_BYTES], &record(preset), &one).unwrap_err();
        assert!(wrong.detail.contains("is not the one"), "{wrong}");
        assert!(unwrap(&operators, &record(Uuid::from_u128(2)), &one).is_err(), "another preset's");
        for bad in ["", "0", "zz", "00ff", &one.wrapped[..40], "ü0"] {
            let damaged = WrappedKey { number: 1, wrapped: bad.into() };
            assert!(unwrap(&operators, &record(preset), &damaged).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_is_64_digits() {
        assert_eq!(parse(&Secret::new("0a".repeat(32)), "file:/k").unwrap(), [10; KEY_BYTES]);
        for bad in ["", "0a", &"0a".repeat(33), &"xx".repeat(32), "hunter2"] {
            let refused = parse(&Secret::new(bad), "file:/k").unwrap_err().detail;
            assert!(refused.contains("openssl rand") && !refused.contains("hunter2"), "{refused}");
        }
    }
}
