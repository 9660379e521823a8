//! What of the program itself stays in memory.
//!
//! Reading and planning a pipeline touches half of the program, and a run nearly nothing of that again. The system keeps
//! such pages as the process's own until it is short of memory; here they are let go. They are pages of a file: a page
//! that is needed after all comes back, as it came the first time.

use std::time::Duration;

/// When pages are let go: first once the start is over, then often enough that a busy time does not show for long. To
/// bring back what a run needs takes a millisecond.
const AFTER: Duration = Duration::from_secs(5);
const EVERY: Duration = Duration::from_secs(60);

/// Lets go of the pages of code that only the start needed, again and again.
pub async fn let_go_of_the_start() {
    tokio::time::sleep(AFTER).await;
    loop {
        if let Some((start, length)) = code() {
            let_go(start, length);
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Finds where the program's code lies in memory; nothing where a debugger may have changed it.
fn code() -> Option<(usize, usize)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    if tracer.trim() != "0" { None } else { code_in(&maps, code as *const () as usize) }
}

/// Finds the mapping that holds an address, if it is code of a file that nobody can write to.
fn code_in(maps: &str, address: usize) -> Option<(usize, usize)> {
    maps.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        let is_code = fields.next()? == "r-xp" && fields.last()?.starts_with('/');
        (is_code && (start..end).contains(&address)).then_some((start, end - start))
    })
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "the system is told of memory by its address")]
fn let_go(start: usize, length: usize) {
    // SAFETY: these are pages of a file, mapped to be read and executed only, so that none differs from the file: they
    // hold the same when they come back.
    let told = unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    if told != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "pages of code stay in memory");
    }
}

#[cfg(not(target_os = "linux"))]
fn let_go(_: usize, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0a0000000-55d0a1000000 r--p 00000000 fd:00 42                         /usr/bin/nexus
55d0a1000000-55d0a5000000 r-xp 01000000 fd:00 42                         /usr/bin/nexus
55d0a5000000-55d0a5400000 r--p 05000000 fd:00 42                         /usr/bin/nexus
7f0000000000-7f0000001000 r-xp 00000000 00:00 0                          [vdso]
7f0000002000-7f0000003000 rwxp 00000000 00:00 0
";

    #[test]
    fn only_code_of_a_file_is_let_go() {
        assert_eq!(code_in(MAPS, 0x55d0_a123_4567), Some((0x55d0_a100_0000, 0x400_0000)));
        for address in [0x55d0_a000_0001, 0x55d0_a500_0001, 0x7f00_0000_0001, 0x7f00_0000_2001, 1] {
            assert_eq!(code_in(MAPS, address), None, "{address:x}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn code_that_was_let_go_goes_on() {
        let (start, length) = code().unwrap();
        let_go(start, length);
        assert_eq!(code(), Some((start, length)));
    }
}
