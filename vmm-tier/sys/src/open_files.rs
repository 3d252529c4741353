//! How many files this process may have open (`RLIMIT_NOFILE`, getrlimit(2)).

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one, and returns it; `None` is without limit.
///
/// The soft limit is 1024 by custom, for programs that use `select(2)`, which this one does not. An
/// event of perf is a file for each thread or CPU that is watched, so hundreds of them need more.
///
/// # Errors
/// The kernel's.
pub fn raise_limit() -> io::Result<Option<u64>> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        let raised = Rlimit {
            current: maximum,
            maximum,
        };
        setrlimit(Resource::Nofile, raised)?;
    }
    Ok(maximum)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// Set for the process whose limit is low, so that no other test's is.
    const CHILD: &str = "TIER_SYS_LOW_LIMIT";

    #[test]
    fn limit_when_the_hard_one_is_higher_is_raised_to_it() {
        if std::env::var_os(CHILD).is_none() {
            let name = "open_files::tests::limit_when_the_hard_one_is_higher_is_raised_to_it";
            let script =
                format!("ulimit -Sn 24 && ulimit -Hn 96 && exec \"$0\" --exact {name} --nocapture");
            let output = std::process::Command::new("sh")
                .args(["-c", &script])
                .arg(std::env::current_exe().unwrap())
                .env(CHILD, "1")
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            return assert!(output.status.success(), "{text}");
        }
        assert_eq!(getrlimit(Resource::Nofile).current, Some(24));
        assert_eq!(raise_limit().unwrap(), Some(96));
        let open = || File::open("/dev/null");
        let opened: Vec<File> = (0..64).map_while(|_| open().ok()).collect();
        assert_eq!(opened.len(), 64);
        assert_eq!(raise_limit().unwrap(), Some(96), "once more");
    }
}
