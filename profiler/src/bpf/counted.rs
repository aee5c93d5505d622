//! The programs of what is counted exactly: system calls, requests to block devices, operations on files, sockets.

use super::BpfError;
use super::load::{Kernel, Limits};

impl Kernel {
    /// Loads the programs of what was asked for.
    ///
    /// # Errors
    ///
    /// When the kernel lacks what one needs, or the verifier refuses it.
    pub fn load_counted(&mut self, limits: Limits) -> Result<(), BpfError> {
        let Limits { calls, blocks, files, net, .. } = limits;
        calls.then(|| self.load_call_programs()).transpose()?;
        blocks.then(|| self.load_block_programs()).transpose()?;
        files.then(|| self.load_file_programs()).transpose()?;
        net.then(|| self.load_net_programs()).transpose()?;
        Ok(())
    }

    /// Attaches what [`Kernel::load_counted`] has loaded.
    ///
    /// # Errors
    ///
    /// When the kernel has nothing to attach it to.
    pub fn begin_counted(&mut self, limits: Limits) -> Result<(), BpfError> {
        let Limits { calls, blocks, files, net, .. } = limits;
        calls.then(|| self.begin_calls()).transpose()?;
        blocks.then(|| self.begin_blocks()).transpose()?;
        files.then(|| self.begin_files()).transpose()?;
        net.then(|| self.begin_net()).transpose()?;
        Ok(())
    }

    /// Detaches it again: what comes from now on is not counted.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn end_counted(&mut self, limits: Limits) -> Result<(), BpfError> {
        let Limits { calls, blocks, files, net, .. } = limits;
        calls.then(|| self.end_calls()).transpose()?;
        net.then(|| self.end_net()).transpose()?;
        files.then(|| self.end_files()).transpose()?;
        blocks.then(|| self.end_blocks()).transpose()?;
        Ok(())
    }
}
