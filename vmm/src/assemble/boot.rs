//! What is put into guest memory before it runs.

use casita_boot::{BootError, BootSpec, Cmdline, EntryState, InitrdPart, VirtioMmio};

use super::AssembleError;
use crate::files::Opened;
use crate::kvm::vm::Vm;
use crate::memory::PlanFiles;
use crate::platform;

/// What is put into guest memory before it runs.
pub(super) struct Boot<'a> {
    pub(super) kernel: &'a Opened,
    pub(super) initrd: Option<&'a Opened>,
    pub(super) agent: Option<&'a [u8]>,
}

impl Boot<'_> {
    pub(super) fn load(
        &self,
        vm: &Vm,
        cmdline: &Cmdline,
        vcpus: u8,
        slots: Vec<VirtioMmio>,
    ) -> Result<EntryState, AssembleError> {
        let user = self.initrd.map(|opened| &opened.file);
        let parts: Vec<InitrdPart<'_>> = user
            .map(|file| InitrdPart::File(file))
            .into_iter()
            .chain(self.agent.map(InitrdPart::Bytes))
            .collect();
        let plan = casita_boot::plan(&BootSpec {
            kernel: &self.kernel.file,
            initrd: &parts,
            cmdline,
            memory: vm.ram().layout(),
            vcpus,
            devices: &platform::acpi_devices(slots),
        })
        .map_err(|source| self.blame(source))?;
        vm.ram().load(
            &plan,
            &PlanFiles {
                kernel: &self.kernel.file,
                initrd: &[user],
            },
        )?;
        Ok(plan.entry)
    }

    /// Names the file that `source` is about.
    fn blame(&self, source: BootError) -> AssembleError {
        let (what, path) = match (&source, self.initrd) {
            (BootError::Kernel(_), _) => ("kernel", &self.kernel.path),
            (BootError::Initrd(_), Some(initrd)) => ("initrd", &initrd.path),
            _ => return AssembleError::Plan(source),
        };
        AssembleError::Boot {
            what,
            path: path.clone(),
            source,
        }
    }
}
