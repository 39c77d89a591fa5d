//! Several machines, each with a cache of its own, that share features: through a folder, and through an S3 server that
//! fails in every way.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use luthier_cache::Remote;
use luthier_testing::Need;
use serde_json::Value;

use crate::kills::{Expect, inspect, project};
use crate::{CLASSES, FOLDERS, PIPELINE, Project, Ran, assert_same, bitmap, results};

/// Another machine, with the same photographs and a cache of its own.
struct Machine<'a> {
    project: &'a Project,
    name: String,
    remote: String,
}

impl<'a> Machine<'a> {
    fn new(project: &'a Project, name: &str, remote: &str) -> Self {
        Machine {
            project,
            name: name.to_owned(),
            remote: remote.to_owned(),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let cache = format!("{}/.luthier", self.name);
        let shared = ["--cache-dir", &cache, "--cache-remote", &self.remote];
        let mut command = self.project.command(&[arguments, &shared].concat());
        command
            .env("HOME", self.project.path(&self.name).join("home"))
            .env("AWS_ACCESS_KEY_ID", "nobody")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ALLOW_HTTP", "true");
        command
    }

    /// Runs the pipeline: how many images it embedded, and what it said.
    fn pipeline(&self, endpoint: Option<SocketAddr>) -> (Value, Ran) {
        let arguments = [&PIPELINE[..], &["--json", "--out", &self.name]].concat();
        let mut command = self.command(&arguments);
        if let Some(endpoint) = endpoint {
            command.env("AWS_ENDPOINT_URL", format!("http://{endpoint}"));
        }
        let ran = Ran::of(command.output().unwrap()).ok();
        let outcome: Value = serde_json::from_str(&ran.stdout).unwrap();
        (outcome["images"]["embedded"].clone(), ran)
    }

    fn results(&self) -> Vec<(std::path::PathBuf, Vec<u8>)> {
        results(&self.project.path(&self.name))
    }
}

#[test]
fn parts_of_which_two_are_killed_give_what_one_run_gives() {
    const PARTS: u64 = 8;
    let project = project(30).at_full_size();
    let n_images = 30 * CLASSES.len() as u64;
    project.pipeline(&["--out", "alone", "--cache-dir", "alone/.luthier"]);
    let shared = project.path("shared");
    let remote = shared.to_str().unwrap().to_owned();
    let embed = |machine: &Machine<'_>, part: u64| -> Command {
        let shard = format!("{part}/{PARTS}");
        let arguments = [&["extract", "--shard", &shard, "--threads", "1"], &FOLDERS[..]].concat();
        let mut command = machine.command(&arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let machines: Vec<Machine<'_>> = (1..=PARTS)
        .map(|part| Machine::new(&project, &format!("machine {part}"), &remote))
        .collect();
    let mut running: Vec<Child> = machines
        .iter()
        .zip(1..)
        .map(|(machine, part)| embed(machine, part).spawn().unwrap())
        .collect();
    // Two of them go in the middle of it.
    let committed = |machine: &Machine<'_>| {
        let cache = project.path(&machine.name).join(".luthier/segments");
        let files = if cache.exists() {
            crate::luthier_files(&cache)
        } else {
            Vec::new()
        };
        files
            .iter()
            .map(|path| path.metadata().map_or(0, |metadata| metadata.len()))
            .sum::<u64>()
    };
    for place in [2, 5] {
        let start = Instant::now();
        while committed(&machines[place]) < 9_000 && start.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(5));
        }
        running[place].kill().unwrap();
    }
    let counts = |ran: &Ran| -> Vec<u64> {
        let words = ran.stdout.split_whitespace().filter_map(|word| word.parse().ok());
        words.collect()
    };
    let (mut n_of_parts, mut n_embedded, mut n_killed) = (0, 0, 0);
    for (place, child) in running.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        let ran = Ran::of(output);
        let ran = match [2, 5].contains(&place) {
            false => ran.ok(),
            true => {
                // On a fast machine it may have come to its end before.
                n_killed += usize::from(ran.status != 0);
                let folder = Project::empty();
                crate::kills::duplicate(
                    &project.path(&machines[place].name).join(".luthier"),
                    &folder.path(".luthier"),
                );
                let n_committed = inspect(&folder, Expect::AllWhole, "a part that was killed");
                assert!(n_committed > 0);
                let again = Ran::of(embed(&machines[place], place as u64 + 1).output().unwrap()).ok();
                // What was committed is not embedded again.
                assert_eq!(counts(&again)[2], n_committed, "{}", again.stdout);
                n_embedded += n_committed;
                again
            }
        };
        let [n, embedded, ..] = counts(&ran)[..] else {
            panic!("{}", ran.stdout)
        };
        n_of_parts += n;
        n_embedded += embedded;
    }
    println!("{n_killed} of 2 were killed in the middle");
    assert_eq!((n_of_parts, n_embedded), (n_images, n_images));
    let last = Machine::new(&project, "last", &remote);
    let (embedded, _) = last.pipeline(None);
    assert_eq!(embedded, 0);
    assert_same(&last.results(), &results(&project.path("alone")), "parts");
    // What each has pushed, and what was committed before the kills.
    let n_pushed = Remote::open(&remote).unwrap().segments().unwrap().len();
    assert_eq!(n_pushed, machines.len() + n_killed);
}

#[test]
fn moments_of_parts_give_the_model_that_all_features_give() {
    const PARTS: usize = 12;
    let project = project(8);
    project.write("data/train/drum/broken.jpg", b"nothing");
    project.pipeline(&[]);
    let moments = |arguments: &[&str]| {
        project
            .run(&[&["moments"], arguments, &FOLDERS[..]].concat())
            .ok()
            .stdout
    };
    let (mut n_rows, mut n_skipped) = (Vec::new(), 0);
    for part in 1..=PARTS {
        let said = moments(&["--shard", &format!("{part}/{PARTS}")]);
        let words: Vec<&str> = said.split_whitespace().collect();
        assert_eq!(words[1], format!("moments/{part}-of-{PARTS}.safetensors"), "{said}");
        n_rows.push(words[2].parse::<usize>().unwrap());
        n_skipped += words[4].parse::<usize>().unwrap();
    }
    println!("rows of the parts: {n_rows:?}");
    assert_eq!((n_rows.iter().sum::<usize>(), n_skipped), (18, 1));
    let train = |arguments: &[&str]| project.run(&[&["train", "--feature-dir", "features"], arguments].concat());
    train(&["--model-dir", "alone"]).ok();
    train(&["--model-dir", "added", "--moments", "moments"]).ok();
    let answers = |folder: &str| -> Vec<Value> {
        let model = format!("{folder}/model.safetensors");
        let ran = project
            .run(&["predict", "--json", "--model-path", &model, "data/test"])
            .ok();
        let lines = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.collect()
    };
    let (alone, added) = (answers("alone"), answers("added"));
    assert_eq!((alone.len(), added.len()), (6, 6));
    for (alone, added) in alone.iter().zip(&added) {
        assert_eq!(alone["answer"], added["answer"]);
        for class in 0..CLASSES.len() {
            let probability = |answer: &Value| answer["predictions"][class]["probability"].as_f64().unwrap();
            let off = probability(added) - probability(alone);
            assert!(off.abs() < 1e-8, "{off:e}: {alone}, {added}");
        }
    }

    let wrong = |arguments: &[&str], expected: &str| {
        let ran = train(arguments);
        let (status, message) = ran.error();
        assert!(status == 1 && message.contains(expected), "{message}");
    };
    wrong(
        &["--moments", "features"],
        "features: expected what `luthier moments` writes, found nothing of it",
    );
    let part = project.path("moments/3-of-12.safetensors");
    let bytes = std::fs::read(&part).unwrap();
    std::fs::write(&part, &bytes[..bytes.len() - 8]).unwrap();
    wrong(
        &["--moments", "moments"],
        "moments/3-of-12.safetensors: expected moments/2, found",
    );
    let mut damaged = bytes.clone();
    damaged[bytes.len() - 8] ^= 1;
    std::fs::write(&part, damaged).unwrap();
    wrong(
        &["--moments", "moments"],
        "moments/3-of-12.safetensors: expected moments with the digest ",
    );
    std::fs::copy(project.path("moments/4-of-12.safetensors"), &part).unwrap();
    wrong(
        &["--moments", "moments"],
        "moments/3-of-12.safetensors: expected part 3/12, found part 4/12",
    );
    project.write("data/train/drum/one more.bmp", &bitmap(0, 99));
    moments(&["--shard", "3/12"]);
    wrong(
        &["--moments", "moments"],
        "moments/3-of-12.safetensors: expected the images of 1-of-12.safetensors, found others",
    );
    std::fs::remove_file(&part).unwrap();
    wrong(
        &["--moments", "moments"],
        "moments: expected 12 parts, found 11: no 3-of-12.safetensors",
    );
    moments(&[]);
    wrong(
        &["--moments", "moments"],
        "moments: expected parts of one division, and the files of others removed, found 1/1 beside 12/12",
    );
    moments(&["--output-dir", "data/train/moments"]);
    moments(&["--output-dir", "others", "--views", "crop"]);
    wrong(
        &["--moments", "others"],
        "others/1-of-1.safetensors: expected moments of untrained",
    );
}

#[test]
fn what_is_shared_is_pushed_pulled_and_counted() {
    let project = project(3);
    project.pipeline(&[]);
    let remote = project.path("shared").display().to_string();
    let run = |arguments: &[&str]| {
        project
            .run(&[&["cache"], arguments, &["--cache-remote", &remote]].concat())
            .ok()
            .stdout
    };
    assert!(run(&["push"]).starts_with("pushed 1 segment ("));
    assert_eq!(run(&["push"]), "pushed 0 segments (0 B)\n");
    let stats = run(&["stats", "--remote"]);
    assert!(stats.contains(&remote), "{stats}");
    let pulled = run(&["pull", "--cache-dir", "other", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&pulled).unwrap()["segments"], 1);
    assert_eq!(project.pipeline(&["--cache-dir", "other"])["images"]["embedded"], 0);

    let ran = project.run(&["cache", "push"]);
    assert_eq!(ran.status, 2);
    assert!(
        ran.error().1.contains("hint: name it with --cache-remote URL"),
        "{}",
        ran.stderr
    );
    let ran = project.run(&["cache", "push", "--cache-remote", "ftp://machine"]);
    assert!(
        ran.error().1.contains("hint: name s3://BUCKET/FOLDER"),
        "{}",
        ran.stderr
    );
    // One that is not there takes nothing from a run.
    let nowhere = ["--cache-dir", "third", "--cache-remote", "http://127.0.0.1:9/cache"];
    let ran = project.run(&[&PIPELINE[..], &nowhere].concat()).ok();
    assert!(ran.stderr.contains("going on without it"), "{}", ran.stderr);
}

#[test]
fn predict_shares_features_also_where_no_cache_was_made() {
    let project = project(3);
    project.pipeline(&[]);
    std::fs::remove_dir_all(project.path(".luthier")).unwrap();
    let remote = project.path("shared").display().to_string();
    let predict = || {
        let arguments = ["predict", "--json", "--cache-remote", &remote, "data/test"];
        project.run(&arguments).ok().stdout
    };
    let n_shared = || Remote::open(&remote).unwrap().segments().unwrap().len();
    let first = predict();
    assert_eq!(n_shared(), 1);
    assert_eq!(predict(), first);
    assert_eq!(n_shared(), 1, "what was shared is found");
    assert!(!project.path(".luthier").exists());
}

/// moto, which answers as S3 does, until this is dropped.
struct S3 {
    server: Child,
    address: SocketAddr,
}

impl S3 {
    fn start(python: &Path) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let server = Command::new(python)
            .args([
                "-m",
                "moto.server",
                "-H",
                "127.0.0.1",
                "-p",
                &address.port().to_string(),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let s3 = S3 { server, address };
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(start.elapsed() < Duration::from_secs(60), "moto does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        let request =
            format!("PUT /bucket HTTP/1.1\r\nhost: {address}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        s3
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

/// What a proxy does to answers that have a body.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// Each comes late.
    Slow,
    /// One bit of each is another.
    Flip,
    /// None but errors of the server.
    Broken,
    /// The connection ends in the middle, and nobody listens any more, from this answer on.
    Gone(u32),
}

/// A proxy before a server, with a fault. It ends with the process.
fn proxy(server: SocketAddr, fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let n_answers = Arc::new(AtomicU32::new(0));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let n_answers = n_answers.clone();
            std::thread::spawn(move || {
                let _ = answer(stream, server, fault, &n_answers);
            });
        }
    });
    address
}

/// Reads a message's head, and the body that it says it has.
fn message(stream: &TcpStream) -> std::io::Result<(String, Vec<u8>)> {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
        // One message a connection.
        if !line.to_lowercase().starts_with("connection:") {
            head += &line;
        }
    }
    let mut body = vec![0; if head.starts_with("HEAD") { 0 } else { length }];
    reader.read_exact(&mut body)?;
    Ok((head + "connection: close\r\n\r\n", body))
}

fn answer(mut client: TcpStream, server: SocketAddr, fault: Fault, n_answers: &AtomicU32) -> std::io::Result<()> {
    let (head, body) = message(&client)?;
    let n = n_answers.fetch_add(1, Ordering::Relaxed);
    match fault {
        Fault::Broken => {
            return client
                .write_all(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
        Fault::Gone(after) if n > after => return Ok(()),
        Fault::Slow => std::thread::sleep(Duration::from_millis(300)),
        _ => {}
    }
    let mut upstream = TcpStream::connect(server)?;
    upstream.write_all(head.as_bytes())?;
    upstream.write_all(&body)?;
    let (head, mut body) = message(&upstream)?;
    let middle = body.len() / 2;
    if fault == Fault::Flip && !body.starts_with(b"<") && !body.is_empty() {
        body[middle] ^= 4;
    }
    client.write_all(head.as_bytes())?;
    match fault {
        Fault::Gone(after) if n == after => client.write_all(&body[..middle]),
        _ => client.write_all(&body),
    }
}

#[test]
fn an_s3_server_that_fails_in_any_way_makes_no_run_wrong() {
    let Some(python) = Need::Python.path() else { return };
    let s3 = S3::start(&python);
    let project = project(6);
    let n_images = 6 * CLASSES.len();
    project.pipeline(&["--out", "alone", "--cache-dir", "alone/.luthier"]);
    let expected = results(&project.path("alone"));
    let remote = "s3://bucket/a folder";

    // The server is broken when the first machine pushes: the next push catches up.
    let first = Machine::new(&project, "first", remote);
    let (embedded, ran) = first.pipeline(Some(proxy(s3.address, Fault::Broken)));
    assert_eq!(embedded, n_images);
    assert!(ran.stderr.contains("going on without it"), "{}", ran.stderr);
    let mut push = first.command(&["cache", "push"]);
    push.env("AWS_ENDPOINT_URL", format!("http://{}", s3.address));
    let pushed = Ran::of(push.output().unwrap()).ok();
    assert!(pushed.stdout.starts_with("pushed 1 segment ("), "{}", pushed.stdout);

    for (name, fault, n_embedded, warns) in [
        ("second", Fault::None, Some(0), false),
        ("slow", Fault::Slow, Some(0), false),
        ("broken", Fault::Broken, Some(n_images), true),
        ("flipped", Fault::Flip, None, true),
        ("gone at once", Fault::Gone(0), Some(n_images), true),
        ("gone with the index", Fault::Gone(2), Some(n_images), true),
        ("gone with the vectors", Fault::Gone(3), Some(n_images), true),
    ] {
        let machine = Machine::new(&project, name, remote);
        let (embedded, ran) = machine.pipeline(Some(proxy(s3.address, fault)));
        assert!(
            n_embedded.is_none_or(|expected| embedded == expected),
            "{name}: {embedded}: {}",
            ran.stderr
        );
        assert_eq!(ran.stderr.contains("cache remote"), warns, "{name}: {}", ran.stderr);
        assert_same(&machine.results(), &expected, name);
        let offline = project.pipeline(&["--out", name, "--cache-dir", &format!("{name}/.luthier")]);
        assert_eq!(offline["images"]["embedded"], 0, "{name}: what was fetched is kept");
    }
}
