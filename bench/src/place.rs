//! Where a measurement runs: on a machine of its own right, or in the lab.

/// What time means in the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lab {
    /// It counts instructions.
    Instructions,
    /// It is that of the machine outside.
    RealTime,
}

/// What every picture and table from the lab says.
pub const LAB_SENTENCE: &str = "measured in the lab: a software CPU; compare, don't quote";

/// Whether this is the lab. It tells its commands by a variable, and its clock by what its kernel
/// was told: one that counts instructions has their number as its frequency.
pub fn lab() -> Option<Lab> {
    std::env::var_os("CASITA_LAB")?;
    Some(clock(
        &std::fs::read_to_string("/proc/cmdline").unwrap_or_default(),
    ))
}

fn clock(cmdline: &str) -> Lab {
    let has = |word| cmdline.split_whitespace().any(|other| other == word);
    if has("idle=poll") && has("tsc_early_khz=1000000") {
        Lab::Instructions
    } else {
        Lab::RealTime
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_labs_clock_is_known_by_its_kernels_command_line() {
        let counted = "console=ttyS0 quiet idle=poll tsc_early_khz=1000000 lpj=4000000";
        assert_eq!(clock(counted), Lab::Instructions);
        assert_eq!(
            clock("nohz=off highres=off tsc_early_khz=2445424"),
            Lab::RealTime
        );
    }
}
