//! Who may use a vDisk, by RPC and by NBD.

use super::*;
use crate::device::Door as NbdDoor;
use ovs_api::{
    AttachmentMode, AttachmentQuery, CreateAttachment, DeleteAttachmentQuery, DeleteVdiskQuery, Door,
    RollbackVdisk, SnapshotRef,
};
use ovs_nbd::{ClientInfo, Device, Exports, Generation, OpenError, Peer, Session, SessionId};
use uuid::Uuid;

fn attach(vdisk: &str, client: &str, mode: AttachmentMode) -> CreateAttachment {
    CreateAttachment {
        vdisk: vdisk_ref(vdisk),
        snapshot: None,
        client: client.into(),
        door: Door::Docker,
        mode,
        host: None,
        write_through: false,
        persistent: true,
        uuid: None,
    }
}

fn session(uuid: Uuid, generation: u64) -> ClientInfo {
    ClientInfo {
        session: Some(Session { id: SessionId(uuid), generation: Generation(generation) }),
        peer: None,
    }
}

async fn with_vdisk(volumes: &Rc<Volumes>) -> NbdDoor {
    volumes.create_vdisk(new_vdisk("a", 1 << 20), no_terms()).await.unwrap();
    volumes.create_snapshot(vdisk_ref("a"), new_snapshot("s"), no_terms()).await.unwrap();
    NbdDoor::to_all(volumes.clone())
}

fn denied<T>(result: Result<T, OpenError>) -> bool {
    matches!(result, Err(OpenError::Denied(_)))
}

#[test]
fn who_comes_over_tcp_is_written_through() {
    World::new().life(async |volumes: Rc<Volumes>| {
        let door = with_vdisk(&volumes).await;
        let peer = Some(Peer::Remote(([192, 0, 2, 7], 4242).into()));
        let shown = async || {
            let mut page = volumes.list_attachments(AttachmentQuery::default()).await.unwrap();
            assert_eq!(page.items.len(), 1);
            page.items.remove(0)
        };
        let anonymous = door.open("default/a", ClientInfo { session: None, peer }).await.unwrap();
        let attachment = shown().await;
        assert!(attachment.write_through);
        assert_eq!(
            (attachment.client.as_str(), attachment.host.as_str()),
            ("NBD client at 192.0.2.7:4242", "192.0.2.7")
        );
        anonymous.released().await;

        // Whatever its attachment was made for, and for good: it may have been handed from here to there.
        let made =
            volumes.create_attachment(attach("a", "c", AttachmentMode::Exclusive)).await.unwrap().value;
        let local = door.open("default/a", session(made.uuid, made.generation)).await.unwrap();
        assert!(!shown().await.write_through);
        local.released().await;
        let named = ClientInfo { peer, ..session(made.uuid, made.generation + 1) };
        let remote = door.open("default/a", named).await.unwrap();
        assert!(shown().await.write_through);
        remote.released().await;
        let local = door.open("default/a", session(made.uuid, made.generation + 2)).await.unwrap();
        assert!(shown().await.write_through);
        local.released().await;
    });
}

#[test]
fn an_anonymous_client_shares_while_it_is_connected() {
    World::new().life(async |volumes: Rc<Volumes>| {
        let door = with_vdisk(&volumes).await;
        let one = door.open("default/a", ClientInfo::default()).await.unwrap();
        let two = door.open("default/a", ClientInfo::default()).await.unwrap();
        assert!(!one.read_only());
        let exclusive = || volumes.create_attachment(attach("a", "c", AttachmentMode::Exclusive));
        let problem = refused(exclusive().await, ProblemKind::InUse);
        assert_eq!(problem.extra["attachments"].as_array().unwrap().len(), 2);
        one.released().await;
        two.released().await;
        exclusive().await.unwrap();
        assert!(matches!(
            door.open("default/a", ClientInfo::default()).await,
            Err(OpenError::Unavailable(_))
        ));
    });
}

#[test]
fn what_may_not_happen_beside_a_writer_names_the_writer() {
    World::new().life(async |volumes: Rc<Volumes>| {
        let door = with_vdisk(&volumes).await;
        let writer = door.open("default/a", ClientInfo::default()).await.unwrap();
        let rollback = || async {
            let back = RollbackVdisk { snapshot: SnapshotRef::Name(name("s")) };
            volumes.rollback_vdisk(vdisk_ref("a"), back, no_terms()).await
        };
        let shrink =
            |attachment| PatchVdisk { size_bytes: Some(4096), allow_shrink: true, attachment, ..patch() };
        let holder = volumes.attachments.list(None)[0].uuid;
        for problem in [
            refused(rollback().await, ProblemKind::InUse),
            refused(volumes.update_vdisk(vdisk_ref("a"), shrink(None), no_terms()).await, ProblemKind::InUse),
            refused(volumes.set_template(vdisk_ref("a"), no_terms()).await, ProblemKind::InUse),
            refused(
                volumes.delete_vdisk(vdisk_ref("a"), DeleteVdiskQuery::default(), no_terms()).await,
                ProblemKind::InUse,
            ),
        ] {
            assert_eq!(problem.extra["attachments"][0], holder.to_string());
        }
        let grow = PatchVdisk { size_bytes: Some(2 << 20), ..patch() };
        volumes.update_vdisk(vdisk_ref("a"), grow, no_terms()).await.unwrap();
        assert_eq!(writer.size(), ByteCount(2 << 20), "a writer sees its vDisk grow");
        volumes.update_vdisk(vdisk_ref("a"), shrink(Some(holder)), no_terms()).await.unwrap();
        writer.released().await;
        rollback().await.unwrap();
        volumes.delete_vdisk(vdisk_ref("a"), DeleteVdiskQuery::default(), no_terms()).await.unwrap();
    });
}

#[test]
fn a_snapshot_is_read_only_and_stays_while_it_is_read() {
    World::new().life(async |volumes: Rc<Volumes>| {
        let door = with_vdisk(&volumes).await;
        write(&volumes, "a", 0, 4, 4096).await;
        let reader = door.open("default/a@s", ClientInfo::default()).await.unwrap();
        assert!(reader.read_only());
        let read = reader.read(range(0, 4096)).await.unwrap();
        assert_eq!(read, ovs_nbd::ReadReply::Data(vec![0; 4096].into()));
        let delete = || volumes.delete_snapshot(vdisk_ref("a"), SnapshotRef::Name(name("s")), no_terms());
        refused(delete().await, ProblemKind::InUse);
        reader.released().await;
        delete().await.unwrap();
    });
}

#[test]
fn hostile_export_names_are_not_found() {
    World::new().life(async |volumes: Rc<Volumes>| {
        let door = with_vdisk(&volumes).await;
        let long = "x".repeat(4096);
        let bad = [
            "",
            "/",
            "a",
            "default",
            "default/",
            "/a",
            "default/a@",
            "default/a@x@y",
            "../a",
            "default/../a",
            "default/a\0",
            "%",
            "nowhere/a",
            &long,
        ];
        for bad in bad {
            let opened = door.open(bad, ClientInfo::default()).await.map(drop);
            assert!(matches!(opened, Err(OpenError::NotFound(_))), "{bad:?}: {opened:?}");
            assert!(matches!(door.info(bad).await, Err(OpenError::NotFound(_))), "{bad:?}");
        }
        assert_eq!(door.list().await, ["default/a"]);
        assert_eq!(volumes.attachments.list(None), vec![], "nothing is left of a refused one");
    });
}

#[test]
fn a_vdisks_own_door_leads_nowhere_else() {
    World::new().life(async |volumes: Rc<Volumes>| {
        with_vdisk(&volumes).await;
        volumes.create_vdisk(new_vdisk("b", 8192), no_terms()).await.unwrap();
        let id = volumes.resolve(&vdisk_ref("b")).await.unwrap();
        let door = NbdDoor::to_one(volumes.clone(), id);
        for good in ["", "default/b"] {
            assert_eq!(door.info(good).await.unwrap().size, ByteCount(8192));
        }
        for bad in ["default/a", "default/a@s"] {
            assert!(matches!(
                door.open(bad, ClientInfo::default()).await.map(drop),
                Err(OpenError::NotFound(_))
            ));
        }
    });
}

#[test]
fn the_same_client_again_fences_what_it_left_on_the_wire() {
    let world = World::new();
    let uuid = world.life(async |volumes: Rc<Volumes>| {
        let door = with_vdisk(&volumes).await;
        let first = volumes.create_attachment(attach("a", "c", AttachmentMode::Exclusive)).await.unwrap();
        let uuid = first.value.uuid;
        let old = door.open("default/a", session(uuid, first.value.generation + 3)).await.unwrap();
        let drains = async {
            old.closed().await;
            old.released().await;
        };
        let again = volumes.create_attachment(attach("a", "c", AttachmentMode::Exclusive));
        let ((), again) = tokio::join!(drains, again);
        let again = again.unwrap();
        assert_eq!((again.is_new, again.value.uuid), (false, uuid));
        assert!(denied(door.open("default/a", session(uuid, first.value.generation + 4)).await));
        let new = door.open("default/a", session(uuid, again.value.generation)).await.unwrap();
        new.released().await;
        refused(
            volumes.create_attachment(attach("a", "c", AttachmentMode::Shared)).await,
            ProblemKind::Conflict,
        );
        refused(
            volumes.create_attachment(attach("a", "d", AttachmentMode::Exclusive)).await,
            ProblemKind::InUse,
        );
        uuid
    });
    // It outlives ovsd.
    world.life(async |volumes: Rc<Volumes>| {
        assert_eq!(volumes.get_attachment(uuid).await.unwrap().client, "c");
        refused(
            volumes.create_attachment(attach("a", "d", AttachmentMode::Exclusive)).await,
            ProblemKind::InUse,
        );
        volumes.delete_attachment(uuid, DeleteAttachmentQuery::default(), no_terms()).await.unwrap();
    });
    world.life(async |volumes: Rc<Volumes>| {
        assert_eq!(volumes.list_attachments(AttachmentQuery::default()).await.unwrap().items.len(), 0);
    });
}

#[test]
fn a_fenced_client_does_not_come_back() {
    let world = World::new();
    let uuid = Uuid::from_u128(77);
    world.life(async |volumes: Rc<Volumes>| {
        let door = with_vdisk(&volumes).await;
        let zombie = door.open("default/a", session(uuid, 1)).await.unwrap();
        assert!(matches!(
            door.open("default/a", ClientInfo::default()).await.map(drop),
            Err(OpenError::Unavailable(_))
        ));
        let detach = |force| volumes.delete_attachment(uuid, DeleteAttachmentQuery { force }, no_terms());
        refused(detach(false).await, ProblemKind::InUse);
        let drains = async {
            zombie.closed().await;
            zombie.released().await;
        };
        let ((), detached) = tokio::join!(drains, detach(true));
        detached.unwrap();
        assert!(denied(door.open("default/a", session(uuid, 2)).await));
        door.open("default/a", session(Uuid::from_u128(78), 1)).await.unwrap().released().await;
    });
    world.life(async |volumes: Rc<Volumes>| {
        let door = NbdDoor::to_all(volumes);
        assert!(denied(door.open("default/a", session(uuid, 3)).await), "not after a restart either");
    });
}

#[test]
fn one_that_was_asked_for_and_never_used_goes() {
    World::new().life(async |volumes: Rc<Volumes>| {
        with_vdisk(&volumes).await;
        let request = CreateAttachment { persistent: false, ..attach("a", "c", AttachmentMode::Exclusive) };
        volumes.create_attachment(request).await.unwrap();
        volumes.begin_background();
        volumes.clock.sleep(Duration::from_secs(50)).await;
        assert_eq!(volumes.attachments.list(None).len(), 1);
        volumes.clock.sleep(Duration::from_secs(20)).await;
        assert_eq!(volumes.attachments.list(None).len(), 0);
    });
}

/// Of a client that outlives ovsd and its registry.
#[test]
fn an_attachment_lost_with_the_registry_is_made_again_for_who_had_it() {
    let mut world = World::new();
    let again = |uuid| CreateAttachment { uuid: Some(uuid), ..attach("a", "c", AttachmentMode::Exclusive) };
    let (lost, fenced) = world.life(async |volumes: Rc<Volumes>| {
        with_vdisk(&volumes).await;
        let attached = async |client| {
            let made = volumes.create_attachment(attach("a", client, AttachmentMode::Exclusive)).await;
            made.unwrap().value.uuid
        };
        let fenced = attached("c").await;
        let force = DeleteAttachmentQuery { force: true };
        volumes.delete_attachment(fenced, force, no_terms()).await.unwrap();
        let ended = attached("c").await;
        volumes.delete_attachment(ended, DeleteAttachmentQuery::default(), no_terms()).await.unwrap();
        refused(volumes.create_attachment(again(ended)).await, ProblemKind::NotFound);
        let lost = attached("c").await;
        refused(volumes.create_attachment(again(ended)).await, ProblemKind::NotFound);
        assert!(!volumes.create_attachment(again(lost)).await.unwrap().is_new);
        (lost, fenced)
    });
    world.lose_registry();
    world.life(async |volumes: Rc<Volumes>| {
        refused(volumes.create_attachment(again(fenced)).await, ProblemKind::NotFound);
        let other = attach("a", "another", AttachmentMode::Exclusive);
        let other = volumes.create_attachment(other).await.unwrap().value.uuid;
        refused(volumes.create_attachment(again(lost)).await, ProblemKind::InUse);
        volumes.delete_attachment(other, DeleteAttachmentQuery::default(), no_terms()).await.unwrap();
        let made = volumes.create_attachment(again(lost)).await.unwrap();
        assert!(made.is_new);
        assert_eq!((made.value.uuid, made.value.persistent), (lost, true));
        refused(volumes.create_attachment(again(fenced)).await, ProblemKind::NotFound);
        // Its vPool may not be back yet.
        let unknown = CreateAttachment { vdisk: VdiskRef::Id(VdiskId(Uuid::from_u128(1))), ..again(lost) };
        refused(volumes.create_attachment(unknown).await, ProblemKind::Unavailable);
    });
    world.life(async |volumes: Rc<Volumes>| {
        let made = volumes.create_attachment(again(lost)).await.unwrap();
        assert!(!made.is_new);
        let unknown = CreateAttachment { vdisk: VdiskRef::Id(VdiskId(Uuid::from_u128(1))), ..again(lost) };
        refused(volumes.create_attachment(unknown).await, ProblemKind::NotFound);
    });
}

/// An opening that waits, for a backend that is away say, keeps no client in.
#[test]
fn a_fence_does_not_wait_for_who_works_on_the_vdisk() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        let id = volumes.create_vdisk(new_vdisk("a", 1 << 20), no_terms()).await.unwrap().value.uuid;
        let made = volumes.create_attachment(attach("a", "c", AttachmentMode::Exclusive)).await.unwrap();
        volumes.slot(id).unsettle();
        let held = world.gates.hold(Call::Get, &format!("head/{id}"));
        let opening = tokio::task::spawn_local({
            let volumes = volumes.clone();
            async move { volumes.ensure_open(id).await.map(drop) }
        });
        world.gates.until_held().await;
        let before = volumes.record(id).await.unwrap().record.generation;
        let force = DeleteAttachmentQuery { force: true };
        volumes.delete_attachment(made.value.uuid, force, no_terms()).await.unwrap();
        assert!(!opening.is_finished());
        let record = volumes.record(id).await.unwrap().record;
        assert_eq!((record.generation, record.fenced.contains(&made.value.uuid)), (before + 1, true));
        drop(held);
        opening.await.unwrap().unwrap();
    });
}
