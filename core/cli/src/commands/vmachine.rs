//! `ovs vmachine ...`

use super::{Context, every, snapshot};
use crate::{
    args::VmachineCommand,
    failure::Failure,
    output::{Align, Table},
};
use ovs_api::{
    CloneVmachine, CreateVmachine, Labels, ListQuery, RollbackVmachine, SnapshotVmachine, Vmachine,
};

pub(super) async fn run(context: &Context, command: VmachineCommand) -> Result<(), Failure> {
    let client = &context.client;
    match command {
        VmachineCommand::Create { name, vdisks } => {
            let vdisks = vdisks.into_iter().map(|vdisk| vdisk.0).collect();
            let request = CreateVmachine { name, vdisks, labels: Labels::default() };
            let created = client.create_vmachine(&request).await?.value;
            context.output.done(&created, format!("{} is created", created.name))
        }
        VmachineCommand::List => {
            let vmachines =
                every(async |limit, cursor| client.list_vmachines(&ListQuery { limit, cursor }).await);
            context.output.list(&vmachines.await?, table)
        }
        VmachineCommand::Show { name } => {
            let vmachine = client.get_vmachine(&name).await?;
            context.output.object(&vmachine, |vmachine| table(std::slice::from_ref(vmachine)).to_string())
        }
        VmachineCommand::Delete { name } => {
            client.delete_vmachine(&name).await?;
            context.output.gone(format!("{name} is forgotten; its vDisks stay"))
        }
        VmachineCommand::Snapshot { name, snapshot } => {
            let request = SnapshotVmachine { name: snapshot, hold_ms_max: None, labels: Labels::default() };
            let taken = client.snapshot_vmachine(&name, &request).await?.items;
            context.output.list(&taken, |snapshots| snapshot::table(snapshots, &context.output))
        }
        VmachineCommand::Rollback { name, snapshot } => {
            let rolled_back = client.rollback_vmachine(&name, &RollbackVmachine { snapshot }).await?;
            context.output.done(&rolled_back, format!("{name} is rolled back"))
        }
        VmachineCommand::Clone { name, new, snapshot } => {
            let created = client.clone_vmachine(&name, &CloneVmachine { name: new, snapshot }).await?.value;
            context.output.done(&created, format!("{} is a clone of {name}", created.name))
        }
    }
}

fn table(vmachines: &[Vmachine]) -> Table {
    Table::new([("VMACHINE", Align::Left), ("VDISKS", Align::Left)]).rows(vmachines, |vmachine| {
        let vdisks: Vec<String> = vmachine.vdisks.iter().map(ToString::to_string).collect();
        [vmachine.name.to_string(), vdisks.join(" ")]
    })
}
