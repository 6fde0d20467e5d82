//! The life of the drives of a composite that is a drive itself.

use super::{
    backends::{THREE_COPIES, composite, files_below, folder, make_drives, namespaces},
    composites::{LEAVING, ended, names, read_at, remove, scos, take_away, until, until_names, write_at},
    presets::preset,
    vpools::vpool,
    *,
};
use ovs_api::{AddDrive, CreateBackend, RemoveDriveQuery, TaskState};

/// Of a composite in another: what its drives are for changes, and where fragments are does not.
#[test]
fn drives_of_a_drive_come_and_go_and_a_site_is_given_up() {
    let world = World::new();
    world.repair_grace.set(Some(Duration::from_secs(60)));
    let (place, sites) = (
        |volumes: &Rc<Volumes>| {
            let volumes = volumes.clone();
            async move { volumes.get_backend(name("east")).await.unwrap().node }
        },
        ["east", "west", "south"],
    );
    world.life(async |volumes: Rc<Volumes>| {
        volumes.create_preset(preset("mirror", &[(1, 1, 2, 2), (1, 0, 1, 1)]), no_terms()).await.unwrap();
        volumes.create_preset(preset("p", THREE_COPIES), no_terms()).await.unwrap();
        for site in sites {
            for drive in ["1", "2"] {
                let text = format!("{site}{drive}");
                let request = CreateBackend {
                    node: Some(format!("rack-{site}")),
                    site: Some(site.into()),
                    ..CreateBackend::dir(name(&text), folder(&world, &text).to_string_lossy())
                };
                volumes.create_backend(request, no_terms()).await.unwrap();
            }
            let drives = [format!("{site}1"), format!("{site}2")];
            let drives: Vec<&str> = drives.iter().map(String::as_str).collect();
            volumes.create_backend(composite(site, &drives, "mirror"), no_terms()).await.unwrap();
        }
        volumes.create_backend(composite("all", &sites, "p"), no_terms()).await.unwrap();
        volumes.create_vpool(vpool("p", Some("all")), no_terms()).await.unwrap();
        let new = CreateVdisk { size_bytes: Some(1 << 20), ..CreateVdisk::new(name("p"), name("v")) };
        volumes.create_vdisk(new, no_terms()).await.unwrap();
        write_at(&volumes, 0, 7).await;
        assert_eq!(place(&volumes).await, "rack-east");
        volumes.begin_background();
        make_drives(&world, &volumes, &["new"]).await;
        let east = name("east");
        volumes.add_drive(east.clone(), AddDrive { drive: name("new") }, no_terms()).await.unwrap();
        let task = volumes.remove_drive(east.clone(), name("east1"), LEAVING, no_terms()).await.unwrap().0;
        assert_eq!(ended(&volumes, task).await.state, TaskState::Succeeded);
        let shown = volumes.get_backend(east).await.unwrap();
        assert_eq!((shown.node.as_str(), shown.drives.len()), ("rack-east", 2), "it is where it was");
        assert!(!scos(&folder(&world, "new")).is_empty());
        until(&volumes, "it is empty", async || files_below(&folder(&world, "east1")).is_empty()).await;
    });
    take_away(&world, "west1");
    take_away(&world, "west2");
    world.life(async |volumes: Rc<Volumes>| {
        assert_eq!(place(&volumes).await, "rack-east");
        volumes.begin_background();
        until_names(&volumes, &["east", "south"]).await;
        assert_eq!(read_at(&volumes, 0).await, 7);
    });
}

/// It leaves while one of its own drives is leaving it: what is there is removed as well.
#[test]
fn a_composite_that_has_left_leaves_nothing_on_its_own_drives() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        volumes.create_preset(preset("mirror", &[(1, 1, 2, 2)]), no_terms()).await.unwrap();
        volumes.create_preset(preset("p", THREE_COPIES), no_terms()).await.unwrap();
        make_drives(&world, &volumes, &["a", "b", "c", "e1", "e2", "e3", "e4"]).await;
        volumes
            .create_backend(composite("east", &["e1", "e2", "e3", "e4"], "mirror"), no_terms())
            .await
            .unwrap();
        volumes.create_backend(composite("all", &["a", "b", "c", "east"], "p"), no_terms()).await.unwrap();
        volumes.create_vpool(vpool("p", Some("all")), no_terms()).await.unwrap();
        let new = CreateVdisk { size_bytes: Some(1 << 20), ..CreateVdisk::new(name("p"), name("v")) };
        volumes.create_vdisk(new, no_terms()).await.unwrap();
        for block in 0..8 {
            write_at(&volumes, block * 65536, 7).await;
        }
        volumes.remove_drive(name("east"), name("e1"), LEAVING, no_terms()).await.unwrap();
        remove(&volumes, "east", LEAVING).await.unwrap();
        // Before anybody has looked after its own.
        let all = volumes.get_backend(name("all")).await.unwrap().uuid;
        let open = volumes.open_composite(all).unwrap().1;
        until(&volumes, "nothing is needed on east", async || {
            let survey = open.coded.look_after(true).await;
            volumes.finish_drives(all).await.unwrap();
            let is_gone = names(&volumes).await == ["a", "b", "c"];
            assert!(is_gone || volumes.clock.now() < Duration::from_secs(600), "{survey:?}");
            is_gone
        })
        .await;
        assert!(!namespaces(&folder(&world, "e1")).is_empty());
        let asked = volumes.remove_drive(name("east"), name("e2"), LEAVING, no_terms()).await;
        let problem = refused(asked, ProblemKind::Conflict);
        assert!(problem.detail.contains("being removed"), "{problem}");
        // One that is dead is not waited for; what is on it is old if it comes back.
        take_away(&world, "e3");
        let given_up = RemoveDriveQuery { lost: true, accept_loss: true };
        let task = volumes.remove_drive(name("east"), name("e3"), given_up, no_terms()).await.unwrap().0;
        assert_eq!(ended(&volumes, task).await.state, TaskState::Succeeded);
        volumes.begin_background();
        for drive in ["e1", "e2", "e4"] {
            until(&volumes, drive, async || namespaces(&folder(&world, drive)).is_empty()).await;
        }
        until(&volumes, "e1 is none any more", async || {
            volumes.get_backend(name("east")).await.unwrap().drives.len() == 2
        })
        .await;
        let back = volumes.add_drive(name("east"), AddDrive { drive: name("e3") }, no_terms()).await;
        assert!(refused(back, ProblemKind::Conflict).detail.contains("given up as lost"));
        assert_eq!(read_at(&volumes, 0).await, 7);
    });
}
