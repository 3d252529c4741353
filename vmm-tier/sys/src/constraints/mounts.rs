//! Mounts of hugetlbfs with bounds, by `/proc/PID/mountinfo` (`hugetlbfs_show_options`,
//! fs/hugetlbfs/inode.c).

use tier_core::constraints::PoolMount;

use super::Device;
use crate::sysroot::{SysRoot, SysRootError, read_text};

/// The largest table of mounts that is read: some 30,000 lines.
const MAX_BYTES: u64 = 4 << 20;

/// The mounts of hugetlbfs that have bounds, with the number of their filesystem, as the process sees
/// them. A filesystem that is mounted several times is told once.
pub(super) fn read(root: &SysRoot, pid: u32) -> Result<Vec<(Device, PoolMount)>, SysRootError> {
    let text = read_text(&root.process(pid, "mountinfo"), MAX_BYTES)?;
    let mut found: Vec<(Device, PoolMount)> = Vec::new();
    for (device, mount) in text.lines().filter_map(parse_line) {
        if found.iter().all(|(known, _)| *known != device) {
            found.push((device, mount));
        }
    }
    Ok(found)
}

/// A line such as `36 25 0:31 / /mnt rw,relatime - hugetlbfs none rw,pagesize=2M,size=1073741824`.
fn parse_line(line: &str) -> Option<(Device, PoolMount)> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut filesystem = filesystem.split(' ');
    if filesystem.next() != Some("hugetlbfs") {
        return None;
    }
    let options = filesystem.nth(1)?;
    let mut fields = mount.split(' ').skip(2);
    let (major, minor) = fields.next()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let path = fields.nth(1)?;
    let bytes = |name: &str| {
        let mut options = options.split(',');
        options.find_map(|option| option.strip_prefix(name)?.parse::<u64>().ok())
    };
    let (limit_bytes, promised_bytes) = (bytes("size="), bytes("min_size="));
    (limit_bytes.is_some() || promised_bytes.is_some()).then(|| {
        let mount = PoolMount {
            path: path.to_owned(),
            limit_bytes,
            promised_bytes: promised_bytes.unwrap_or(0),
        };
        (device, mount)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_when_they_have_bounds_are_found_once_by_their_number() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("proc/7")).unwrap();
        let text = "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw,size=7\n\
                    36 22 0:31 / /mnt/a rw,relatime shared:9 master:2 - hugetlbfs none rw,pagesize=2M,size=1073741824,min_size=2097152\n\
                    37 22 0:31 / /mnt/again rw - hugetlbfs none rw,pagesize=2M,size=1073741824,min_size=2097152\n\
                    38 22 0:32 / /dev/hugepages rw - hugetlbfs none rw,pagesize=2M\n\
                    39 22 what / /x rw - hugetlbfs none rw,size=1\n";
        std::fs::write(folder.path().join("proc/7/mountinfo"), text).unwrap();
        let mounts = read(&SysRoot::at(folder.path()), 7).unwrap();
        let expected = PoolMount {
            path: "/mnt/a".to_owned(),
            limit_bytes: Some(1 << 30),
            promised_bytes: 2 << 20,
        };
        assert_eq!(mounts, [((0, 31), expected)]);
    }
}
