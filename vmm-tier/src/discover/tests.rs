//! Discovery against a server that plays QEMU, with this test process as the one that maps the RAM.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixListener,
    thread,
};

use serde_json::{Value, json};

use super::*;

const MIB: u64 = 1 << 20;

/// A guest as QEMU would describe it: pieces of one buffer of this process.
#[derive(Clone)]
struct Machine {
    /// Name, offset in the buffer, length, guest-physical address.
    blocks: Vec<(&'static str, u64, u64, u64)>,
}

impl Machine {
    fn ramblocks(&self, base: u64) -> String {
        let mut text = "Block Name    PSize  Offset  Used  Total  HVA  RO\n".to_owned();
        for (name, offset, len, _) in &self.blocks {
            text += &format!(
                "{name}  4 KiB  {offset:#018x} {len:#018x} {len:#018x} {:#018x} rw\n",
                base + offset
            );
        }
        text
    }

    fn devices(&self) -> Value {
        let devices = self.blocks.iter().filter(|(.., gpa)| *gpa != 0);
        devices
            .map(|(name, _, len, gpa)| {
                if let Some(id) = name.strip_prefix("0000:00:05.0/") {
                    return json!({"type": "virtio-mem", "data": {"id": id, "memaddr": gpa, "requested-size": 0,
                        "size": 0, "max-size": len, "block-size": 2 * MIB, "node": 0, "memdev": "/objects/m"}});
                }
                json!({"type": "dimm", "data": {"addr": gpa, "size": len, "slot": 0, "node": 0, "memdev": name}})
            })
            .collect()
    }

    fn gpa2hva(&self, base: u64, gpa: u64) -> String {
        let home = self
            .blocks
            .iter()
            .find(|(_, _, len, start)| (*start..start + len).contains(&gpa));
        match home {
            Some((name, offset, _, start)) => {
                format!(
                    "Host virtual address for {gpa:#x} ({name}) is {:#x}\n",
                    base + offset + (gpa - start)
                )
            }
            None => format!("No memory is mapped at address {gpa:#x}\n"),
        }
    }
}

/// How the played QEMU behaves.
struct Player {
    /// The layout at each reading of blocks and devices; the last one stays.
    layouts: Vec<Machine>,
    /// Whether it is older than 6.2, without `x-query-ramblock`.
    is_old: bool,
    /// Where the RAM is said to be.
    base: u64,
}

impl Player {
    /// Serves one client on a new socket until it leaves; the thread returns the commands it got.
    fn serve(mut self, folder: &tempfile::TempDir) -> (Client, thread::JoinHandle<Vec<String>>) {
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut writer = stream.try_clone().unwrap();
            let greeting = json!({"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": ""}, "capabilities": []}});
            writeln!(writer, "{greeting}\r").unwrap();
            let mut log = Vec::new();
            for line in BufReader::new(stream).lines() {
                let Ok(line) = line else { break };
                let request: Value = serde_json::from_str(&line).unwrap();
                let mut reply = self.answer(&request, &mut log);
                reply["id"] = request["id"].clone();
                if writeln!(writer, "{reply}\r").is_err() {
                    break;
                }
            }
            log
        });
        (
            Client::connect(&path, &qmp::client::Options::default())
                .unwrap()
                .0,
            server,
        )
    }

    fn answer(&mut self, request: &Value, log: &mut Vec<String>) -> Value {
        let command = request["execute"].as_str().unwrap();
        let line = request["arguments"]["command-line"]
            .as_str()
            .unwrap_or_default();
        log.push(format!("{command} {line}").trim_end().to_owned());
        let machine = self.layouts[0].clone();
        match (command, line) {
            ("qmp_capabilities", _) => json!({"return": {}}),
            ("x-query-ramblock", _) if !self.is_old => {
                json!({"return": {"human-readable-text": machine.ramblocks(self.base)}})
            }
            ("human-monitor-command", "info ramblock") => {
                json!({"return": machine.ramblocks(self.base)})
            }
            ("query-memory-devices", _) => {
                // The second half of a reading: afterwards the guest may change.
                if self.layouts.len() > 1 {
                    self.layouts.remove(0);
                }
                json!({"return": machine.devices()})
            }
            ("qom-get", _) => match request["arguments"]["path"].as_str().unwrap() {
                "/machine/peripheral/slots" => json!({"return": true}),
                "/machine/peripheral/whole" => json!({"return": false}),
                _ => {
                    json!({"error": {"class": "GenericError", "desc": "Property 'virtio-mem-pci.dynamic-memslots' not found"}})
                }
            },
            ("human-monitor-command", line) if line.starts_with("gpa2hva ") => {
                let gpa = u64::from_str_radix(line.trim_start_matches("gpa2hva 0x"), 16).unwrap();
                json!({"return": machine.gpa2hva(self.base, gpa)})
            }
            _ => {
                json!({"error": {"class": "CommandNotFound", "desc": format!("The command {command} has not been found")}})
            }
        }
    }
}

/// A buffer of 64 MiB and the first multiple of 2 MiB in it.
fn buffer() -> (Vec<u8>, u64) {
    let buffer = vec![0_u8; 64 << 20];
    let base = (buffer.as_ptr() as u64).next_multiple_of(2 * MIB);
    (buffer, base)
}

fn plain() -> Machine {
    Machine {
        blocks: vec![("pc.ram", 0, 32 * MIB, 0)],
    }
}

fn with_dimm() -> Machine {
    Machine {
        blocks: vec![
            ("pc.ram", 0, 32 * MIB, 0),
            ("dimm", 32 * MIB, 16 * MIB, 4 << 30),
        ],
    }
}

fn play<T>(player: Player, act: impl FnOnce(&Client) -> T) -> (T, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let (client, server) = player.serve(&folder);
    let result = act(&client);
    drop(client);
    (result, server.join().unwrap())
}

fn places(map: &GuestMemoryMap) -> Vec<(u64, u64)> {
    map.ranges()
        .iter()
        .map(|range| (range.gpa.0, range.len))
        .collect()
}

#[test]
fn discover_when_the_layout_is_steady_needs_one_attempt_and_harmless_commands() {
    let (_buffer, base) = buffer();
    let player = Player {
        layouts: vec![with_dimm()],
        is_old: false,
        base,
    };

    let (found, log) = play(player, |client| discover(client, &SysRoot::real()).unwrap());

    assert_eq!(places(&found.map), [(MIB, 31 * MIB), (4 << 30, 16 * MIB)]);
    assert_eq!(
        (found.pid, found.attempts, found.map.generation()),
        (std::process::id(), 1, 1)
    );
    assert_eq!(found.map.blocks()[0].backing, Some(Backing::Anonymous));
    let harmless = [
        "qmp_capabilities",
        "x-query-ramblock",
        "query-memory-devices",
        "human-monitor-command gpa2hva 0x",
    ];
    for command in &log {
        assert!(
            harmless.iter().any(|start| command.starts_with(start)),
            "{command}"
        );
    }
}

#[test]
fn discover_when_a_virtio_mem_device_is_there_asks_whether_it_has_memslots() {
    let (_buffer, base) = buffer();
    for (name, has_holes) in [
        ("0000:00:05.0/slots", true),
        ("0000:00:05.0/whole", false),
        // QEMU before 8.2.
        ("0000:00:05.0/old", false),
    ] {
        let blocks = vec![
            ("pc.ram", 0, 32 * MIB, 0),
            (name, 32 * MIB, 16 * MIB, 4 << 30),
        ];
        let player = Player {
            layouts: vec![Machine { blocks }],
            is_old: false,
            base,
        };

        let ((layout, found), _) = play(player, |client| {
            let monitor = Monitor {
                client,
                deadline: None,
            };
            let layout = Layout::read(&monitor).unwrap();
            (layout, discover(client, &SysRoot::real()).unwrap())
        });

        assert_eq!(layout.devices[0].has_holes, has_holes, "{name}");
        assert_eq!(places(&found.map), [(MIB, 31 * MIB), (4 << 30, 16 * MIB)]);
    }
}

#[test]
fn discover_when_a_dimm_is_plugged_meanwhile_starts_over() {
    let (_buffer, base) = buffer();
    // The list is read before and after probing: the DIMM is there from the second time on.
    let player = Player {
        layouts: vec![plain(), with_dimm()],
        is_old: false,
        base,
    };

    let (found, _) = play(player, |client| discover(client, &SysRoot::real()).unwrap());

    assert_eq!(found.attempts, 2);
    assert_eq!(places(&found.map).len(), 2);
}

#[test]
fn discover_when_the_layout_never_rests_gives_up() {
    let (_buffer, base) = buffer();
    let layouts = (0..20)
        .map(|n| if n % 2 == 0 { plain() } else { with_dimm() })
        .collect();

    let (result, _) = play(
        Player {
            layouts,
            is_old: false,
            base,
        },
        |client| discover(client, &SysRoot::real()),
    );

    assert!(matches!(result, Err(DiscoverError::Unsteady)), "{result:?}");
}

#[test]
fn discover_when_qemu_is_older_than_6_2_asks_the_human_monitor_for_blocks() {
    let (_buffer, base) = buffer();
    let player = Player {
        layouts: vec![plain()],
        is_old: true,
        base,
    };

    let (found, log) = play(player, |client| discover(client, &SysRoot::real()).unwrap());

    assert_eq!(places(&found.map), [(MIB, 31 * MIB)]);
    assert!(log.contains(&"human-monitor-command info ramblock".to_owned()));
}

#[test]
fn discover_when_the_process_does_not_map_the_ram_says_so() {
    // The first pages of an address space are never mapped.
    let player = Player {
        layouts: vec![plain()],
        is_old: false,
        base: 0x1000,
    };

    let (result, _) = play(player, |client| discover(client, &SysRoot::real()));

    assert!(
        matches!(result, Err(DiscoverError::WrongProcess { .. })),
        "{result:?}"
    );
}

#[test]
fn map_when_the_layout_changed_counts_the_generation_up() {
    let (_buffer, base) = buffer();
    // Two readings a discovery: plain twice, plain twice, then with the DIMM.
    let layouts = vec![plain(), plain(), plain(), plain(), with_dimm()];
    let root = SysRoot::real();

    let (generations, _) = play(
        Player {
            layouts,
            is_old: false,
            base,
        },
        |client| {
            let first = discover(client, &root).unwrap().map;
            let second = first.succeeded_by(discover(client, &root).unwrap().map);
            let third = second.succeeded_by(discover(client, &root).unwrap().map);
            [first, second, third].map(|map| map.generation())
        },
    );

    assert_eq!(generations, [1, 1, 2]);
}

fn block(page_size: u64) -> RamBlock {
    RamBlock {
        name: "ram0".to_owned(),
        hva: Hva(0x7f00_0000_0000),
        used: 4 << 20,
        total: 4 << 20,
        page_size,
        backing: None,
    }
}

fn seen(name: &str, kib: u64, flags: &str) -> Vec<MappingMemory> {
    let text = format!(
        "7f0000000000-7f0000400000 rw-s 00000000 00:01 51   {name}\n\
         KernelPageSize: {kib:8} kB\nRss: 0 kB\nVmFlags: {flags}\n"
    );
    smaps::parse(&text).unwrap()
}

#[test]
fn backing_when_the_mapping_is_named_is_told_by_name_and_flags() {
    for (name, kib, flags, expected) in [
        ("", 4, "rd wr hg", Backing::Anonymous),
        ("[anon:ram0]", 4, "rd wr", Backing::Anonymous),
        (
            "/memfd:memory-backend-memfd (deleted)",
            4,
            "rd wr sh",
            Backing::Shmem,
        ),
        ("/dev/shm/guest", 4, "rd wr sh", Backing::Shmem),
        ("/dev/zero (deleted)", 4, "rd wr sh", Backing::Shmem),
        (
            "/memfd:memory-backend-memfd (deleted)",
            2048,
            "rd wr sh ht",
            Backing::Hugetlb,
        ),
        (
            "/dev/hugepages/qemu_back_mem.pc.ram.JlYZBZ (deleted)",
            2048,
            "rd wr ht",
            Backing::Hugetlb,
        ),
        ("/srv/guest.ram", 4, "rd wr sh", Backing::File),
    ] {
        assert_eq!(
            kernel_view(&block(kib << 10), &seen(name, kib, flags)),
            Ok(expected),
            "{name}"
        );
    }
}

#[test]
fn page_size_when_qemu_and_the_kernel_disagree_is_an_error() {
    let memory = seen("/memfd:x (deleted)", 2048, "rd wr sh ht");

    assert_eq!(
        kernel_view(&block(4096), &memory),
        Err(Disagreement::PageSize(2 << 20))
    );
}

#[test]
fn block_when_no_mapping_holds_it_is_another_process_memory() {
    assert_eq!(kernel_view(&block(4096), &[]), Err(Disagreement::NotMapped));
}

/// A folder tree in which this process maps one piece of memory of 64 MiB at `base`, as `permissions`
/// say.
fn proc_tree(base: u64, permissions: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let process = folder.path().join(format!("proc/{}", std::process::id()));
    std::fs::create_dir_all(&process).unwrap();
    write_maps(&folder, base, permissions);
    let line = std::fs::read_to_string(process.join("maps")).unwrap();
    let smaps = format!("{line}KernelPageSize:        4 kB\nRss: 0 kB\nVmFlags: rd wr\n");
    std::fs::write(process.join("smaps"), smaps).unwrap();
    folder
}

fn write_maps(folder: &tempfile::TempDir, base: u64, permissions: &str) {
    let maps = folder
        .path()
        .join(format!("proc/{}/maps", std::process::id()));
    let line = format!(
        "{base:x}-{:x} {permissions} 00000000 00:00 0 \n",
        base + 64 * MIB
    );
    std::fs::write(maps, line).unwrap();
}

#[test]
fn smaps_when_the_mappings_are_the_same_is_read_once() {
    let base = 0x7f00_0000_0000;
    let folder = proc_tree(base, "rw-p");
    let root = SysRoot::at(folder.path());
    let player = Player {
        layouts: vec![plain()],
        is_old: false,
        base,
    };
    let mut known = Known::default();

    let (results, _) = play(player, |client| {
        let mut find = || discover_within(Duration::from_secs(60), client, &root, &mut known);
        let first = find();
        // Whoever reads it from now on gets an error.
        let smaps = format!("proc/{}/smaps", std::process::id());
        std::fs::remove_file(folder.path().join(smaps)).unwrap();
        let same = find();
        write_maps(&folder, base, "rw-s");
        [first, same, find()]
    });

    let [first, same, changed] = results;
    assert!(first.unwrap().map.same_layout(&same.unwrap().map));
    assert!(
        matches!(changed, Err(DiscoverError::Gone { .. })),
        "a mapping that differs must be looked at: {changed:?}"
    );
}

#[test]
fn discovery_when_its_time_is_up_says_so_and_asks_no_more() {
    let player = Player {
        layouts: vec![plain()],
        is_old: false,
        base: 0x7f00_0000_0000,
    };
    let root = SysRoot::at(std::path::Path::new("/nonexistent"));

    let (result, log) = play(player, |client| {
        discover_within(Duration::ZERO, client, &root, &mut Known::default())
    });

    assert!(
        matches!(result, Err(DiscoverError::TooSlow { .. })),
        "{result:?}"
    );
    assert_eq!(log, ["qmp_capabilities"]);
}

#[test]
fn layout_when_the_lists_are_the_same_is_asked_for_again_only_if_doubted() {
    let (_buffer, base) = buffer();
    // Two readings a discovery that asks for addresses, one that does not.
    let layouts = vec![plain(), plain(), plain(), with_dimm()];
    let player = Player {
        layouts,
        is_old: false,
        base,
    };
    let (root, mut known) = (SysRoot::real(), Known::default());

    let (found, _) = play(player, |client| {
        let mut find = |is_doubted| {
            if is_doubted {
                known.doubt_layout();
            }
            discover_within(Duration::from_secs(60), client, &root, &mut known).unwrap()
        };
        [
            find(false),
            find(false),
            find(false),
            find(false),
            find(true),
        ]
    });

    let probes = found.each_ref().map(|found| found.probes > 0);
    assert_eq!(probes, [true, false, true, false, true]);
    let [first, same, plugged, still, doubted] = found.map(|found| found.map);
    assert!(first.same_layout(&same) && !same.same_layout(&plugged));
    assert!(plugged.same_layout(&still) && still.same_layout(&doubted));
    assert_eq!(same.blocks()[0].backing, Some(Backing::Anonymous));
}
