//! Presets and their keys.

use super::*;
use ovs_api::{CreateBackend, CreatePreset, Encryption, ListQuery, Policy, SecretReference};
use std::{fs, os::unix::fs::PermissionsExt};

pub(super) fn preset(text: &str, policies: &[(u8, u8, u8, u8)]) -> CreatePreset {
    CreatePreset {
        name: name(text),
        compression: ovs_api::Compression::Lz4,
        encryption: Encryption::None,
        key: None,
        fragment_size_bytes: 1 << 20,
        policies: policies.iter().map(|(k, m, c, x)| Policy { k: *k, m: *m, c: *c, x: *x }).collect(),
        labels: Labels::default(),
    }
}

/// A file of a key where ovsd looks for it.
pub(super) fn key_file(world: &World, text: &str) -> SecretReference {
    secret_file(world, "keys/secret", text)
}

/// A file of a secret in a place beside `ovsd.yaml`.
pub(super) fn secret_file(world: &World, place: &str, text: &str) -> SecretReference {
    let path = world.paths().config_file().with_file_name("secrets").join(place);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    SecretReference::try_from(format!("file:{}", path.display())).unwrap()
}

pub(super) fn encrypted(text: &str, key: SecretReference) -> CreatePreset {
    CreatePreset {
        encryption: Encryption::Aes256Gcm,
        key: Some(key),
        ..preset(text, &[(2, 1, 3, 3), (1, 1, 2, 3)])
    }
}

#[test]
fn presets_are_kept_and_go_when_nobody_uses_them() {
    let world = World::new();
    let made = world.life(async |volumes: Rc<Volumes>| {
        let made = volumes.create_preset(preset("p", &[(2, 1, 3, 3)]), no_terms()).await.unwrap();
        assert!(made.is_new);
        assert!(!volumes.create_preset(preset("p", &[(2, 1, 3, 3)]), no_terms()).await.unwrap().is_new);
        refused(volumes.create_preset(preset("p", &[(3, 1, 3, 3)]), no_terms()).await, ProblemKind::Exists);
        refused(
            volumes.create_preset(preset("default", &[(1, 0, 1, 1)]), no_terms()).await,
            ProblemKind::Exists,
        );
        made.value
    });
    world.life(async |volumes: Rc<Volumes>| {
        assert_eq!(volumes.get_preset(name("p")).await.unwrap(), made);
        let names: Vec<Name> = volumes
            .list_presets(ListQuery::default())
            .await
            .unwrap()
            .items
            .into_iter()
            .map(|p| p.name)
            .collect();
        assert_eq!(names, [name("default"), name("p")]);
        let path = world.path().join("d").to_string_lossy().into_owned();
        volumes.create_backend(CreateBackend::dir(name("d"), path), no_terms()).await.unwrap();
        volumes.create_preset(preset("one", &[(1, 0, 1, 1)]), no_terms()).await.unwrap();
        let composite = CreateBackend {
            of: vec![name("d")],
            preset: Some(name("one")),
            ..CreateBackend::new(name("c"), ovs_api::BackendKind::Composite)
        };
        volumes.create_backend(composite, no_terms()).await.unwrap();
        let problem = refused(volumes.delete_preset(name("one"), no_terms()).await, ProblemKind::InUse);
        assert!(problem.detail.contains("backend c"), "{problem}");
        assert_eq!(volumes.get_preset(name("one")).await.unwrap().backends, [name("c")]);
        volumes.delete_backend(name("c"), no_terms()).await.unwrap();
        volumes.delete_preset(name("one"), no_terms()).await.unwrap();
        volumes.delete_preset(name("p"), no_terms()).await.unwrap();
        refused(volumes.get_preset(name("p")).await, ProblemKind::NotFound);
        refused(volumes.delete_preset(name("default"), no_terms()).await, ProblemKind::InUse);
    });
}

#[test]
fn a_key_is_read_from_where_it_may_be_and_kept_nowhere() {
    const KEY: &str = "5ec2e7000000000000000000000000000000000000000000000000005ec2e700";
    let world = World::new();
    let key = key_file(&world, KEY);
    world.life(async |volumes: Rc<Volumes>| {
        let made = volumes.create_preset(encrypted("e", key.clone()), no_terms()).await.unwrap().value;
        assert_eq!((made.encryption, made.key.as_ref()), (Encryption::Aes256Gcm, Some(&key)));
        assert!(!format!("{made:?}").contains("5ec2e7"));
        let stored = format!("{:?}", volumes.all_presets().await.unwrap());
        assert!(stored.contains(key.as_str()) && !stored.contains("5ec2e7"), "{stored}");

        // Elsewhere ovsd reads nothing, and what it reads is not shown.
        // Beside ovsd.yaml are tokens and other keys, and what is for stores is shown to servers.
        let (beside, of_stores) =
            (secret_file(&world, "../tokens", KEY), secret_file(&world, "stores/secret", KEY));
        for (reference, words) in [
            (beside.as_str().replace("secrets/../", ""), "lies outside"),
            (beside.as_str().to_owned(), "lies outside"),
            (of_stores.as_str().to_owned(), "lies outside"),
            (format!("{key}s"), "No such file"),
            ("file:/etc/shadow".into(), "lies outside"),
            ("env:OVS_5ec2e7".into(), "begin with OVS_SECRET_"),
            ("env:OVS_SECRET_KEY_NO_SUCH".into(), "no such variable"),
        ] {
            let reference = SecretReference::try_from(reference).unwrap();
            let problem = refused(
                volumes.create_preset(encrypted("f", reference), no_terms()).await,
                ProblemKind::Conflict,
            );
            assert!(problem.detail.contains(words) && !problem.detail.contains("5ec2e7"), "{problem}");
        }
        key_file(&world, "5ec2e7 is no key");
        let problem = refused(
            volumes.create_preset(encrypted("f", key.clone()), no_terms()).await,
            ProblemKind::Conflict,
        );
        assert!(problem.detail.contains("openssl rand") && !problem.detail.contains("5ec2e7"), "{problem}");
        refused(volumes.get_preset(name("f")).await, ProblemKind::NotFound);
    });
    let inventory = fs::read_to_string(world.paths().state_dir().join("vpools.json")).unwrap();
    assert!(inventory.contains("aes") || inventory.contains("wrapped"), "{inventory}");
    assert!(!inventory.contains("5ec2e7"), "{inventory}");
}
