//! `luthier serve`, as browsers and programs use it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use luthier_artifact::{Digest, entries};
use luthier_extract::{NamedWeights, WeightsSource};
use luthier_testing::Need;
use serde_json::{Value, json};

use crate::{FOLDERS, Project, Ran, browser, photo};

/// A service that runs.
pub(crate) struct Served {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
    /// What all paths begin with: nothing, or a token.
    prefix: String,
}

/// What a request gave.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: String,
    body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }
}

impl Served {
    fn start(project: &Project, arguments: &[&str]) -> Self {
        Self::start_command(project, "serve", arguments)
    }

    pub(crate) fn start_command(project: &Project, command: &str, arguments: &[&str]) -> Self {
        let all = [&[command, "--listen", "127.0.0.1:0"], arguments].concat();
        let mut child = project
            .command(&all)
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        let shown = loop {
            let mut line = String::new();
            assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "{said}");
            if let Some((_, rest)) = line.split_once("http://") {
                break rest.split(' ').next().unwrap().to_owned();
            }
            said += &line;
        };
        let shown = shown.trim_end_matches('/');
        let (address, prefix) = shown.split_at(shown.find('/').unwrap_or(shown.len()));
        Served {
            child,
            stderr,
            address: address.to_owned(),
            prefix: prefix.to_owned(),
        }
    }

    /// The address of the page.
    pub(crate) fn url(&self) -> String {
        format!("http://{}{}/", self.address, self.prefix)
    }

    /// Sends bytes as they are, and reads the answer.
    pub(crate) fn send(&self, bytes: &[u8]) -> std::io::Result<Answer> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.write_all(bytes)?;
        read(&mut stream)
    }

    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> std::io::Result<Answer> {
        let mut request = format!(
            "{method} {}{path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n",
            self.prefix, self.address
        );
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        request += &format!("content-length: {}\r\n\r\n", body.len());
        self.send(&[request.as_bytes(), body].concat())
    }

    pub(crate) fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.request("POST", path, headers, body).unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"").unwrap()
    }

    fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(std::process::Command::new("kill").arg(&pid).status().unwrap().success());
    }

    /// Kills the process, which cannot do anything any more.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends the service; the result is what it said since it was ready.
    pub(crate) fn end(self) -> String {
        self.terminate();
        self.end_after_signal()
    }

    fn end_after_signal(mut self) -> String {
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).unwrap();
        assert!(self.child.wait().unwrap().success(), "{said}");
        said
    }
}

fn read(stream: &mut TcpStream) -> std::io::Result<Answer> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let end = bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap_or(bytes.len());
    let headers = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let status = headers
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or(0);
    Ok(Answer {
        status,
        headers,
        body: bytes.get(end + 4..).unwrap_or_default().to_vec(),
    })
}

fn trained() -> Project {
    train(Project::new())
}

/// Whose network takes long enough to be disturbed.
fn trained_at_full_size() -> Project {
    train(Project::new().at_full_size())
}

fn train(project: Project) -> Project {
    project.pipeline(&[]);
    project
}

fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, bytes) in parts {
        body.extend(
            format!("--x\r\ncontent-disposition: form-data; name=\"image\"; filename=\"{name}\"\r\n\r\n").bytes(),
        );
        body.extend(*bytes);
        body.extend(b"\r\n");
    }
    body.extend(b"--x--\r\n");
    body
}

#[test]
fn images_are_answered_as_predict_does_however_they_are_sent() {
    let project = trained();
    let file = "data/test/harp/5.jpg";
    let image = std::fs::read(project.path(file)).unwrap();
    let ran: Ran = project.run(&["predict", file, "--format", "json"]).ok();
    let mut expected: Value = serde_json::from_str(&ran.stdout).unwrap();
    let served = Served::start(&project, &["-v"]);

    let one = served.post("/v1/predict", &[], &image);
    assert_eq!((one.status, one.json()["file"].clone()), (200, Value::Null));
    expected.as_object_mut().unwrap().remove("file");
    assert_eq!(one.json(), expected);
    let top = served.post("/v1/predict?top_k=1", &[], &image).json();
    assert_eq!(top["predictions"].as_array().unwrap().len(), 1);

    let body = form(&[("a.jpg", &image), ("note.txt", b"text"), ("../../b.jpg", &image)]);
    let several = served.post(
        "/v1/predict",
        &[("content-type", "multipart/form-data; boundary=x")],
        &body,
    );
    assert_eq!(several.status, 200);
    let several = several.json();
    let files: Vec<&str> = several
        .as_array()
        .unwrap()
        .iter()
        .map(|answer| answer["file"].as_str().unwrap())
        .collect();
    assert_eq!(files, ["a.jpg", "note.txt", "../../b.jpg"]);
    assert_eq!(several[0]["predictions"], expected["predictions"]);
    assert_eq!(
        several[1]["error"],
        "not an image: the bytes begin like no known format"
    );

    let images = json!({"images": [
        {"file": "harp", "data": STANDARD.encode(&image)},
        {"data": format!("data:image/jpeg;base64,{}", STANDARD.encode(&image))},
    ]});
    let in_json = served.post(
        "/v1/predict",
        &[("content-type", "application/json")],
        images.to_string().as_bytes(),
    );
    assert_eq!(in_json.json()[0]["file"], "harp");
    assert_eq!(in_json.json()[1]["predictions"], expected["predictions"]);

    let card = served.get("/v1/model").json();
    assert_eq!(card["classes"], json!(["drum", "flute", "harp"]));
    for (path, part) in [
        ("/healthz", "ok"),
        ("/readyz", "ready"),
        ("/metrics", "luthier_images_total{outcome=\"answered\"} 6"),
        ("/openapi.json", "\"openapi\": \"3.1.0\""),
    ] {
        let answer = served.get(path);
        let text = String::from_utf8(answer.body).unwrap();
        assert!(answer.status == 200 && text.contains(part), "{path}: {text}");
    }
    let log = served.end();
    let first: Value = log.lines().find_map(|line| serde_json::from_str(line).ok()).unwrap();
    assert_eq!(
        (&first["method"], &first["path"]),
        (&json!("POST"), &json!("/v1/predict"))
    );
}

#[test]
fn what_is_wrong_with_a_request_is_said_and_harms_nobody() {
    let project = trained();
    let image = photo(2, 5);
    let arguments = ["--max-body", "100KiB", "--token", "secret", "--body-timeout", "1"];
    let served = Served::start(&project, &arguments);
    let token = ("authorization", "Bearer secret");
    let json = ("content-type", "application/json");
    let multipart = ("content-type", "multipart/form-data; boundary=x");
    let large = vec![0; 200 << 10];
    for (headers, body, status, error) in [
        (
            &[][..],
            &image[..],
            401,
            "expected the header Authorization: Bearer TOKEN",
        ),
        (
            &[("authorization", "Bearer wrong")],
            &image,
            401,
            "expected the header Authorization",
        ),
        (&[token], b"", 400, "an empty body, expected an image"),
        (
            &[token],
            b"text",
            422,
            "not an image: the bytes begin like no known format",
        ),
        (&[token], &image[..200], 422, "damaged JPEG: cut short"),
        (&[token, json], b"{", 400, "JSON: EOF"),
        (&[token, json], b"{\"images\": []}", 400, "JSON: no images"),
        (
            &[token, json],
            b"{\"images\": [{\"data\": \"?\"}]}",
            400,
            "JSON: image 0: ",
        ),
        (&[token, multipart], b"--x--", 400, "a form without parts"),
        (
            &[token, ("content-type", "multipart/form-data")],
            b"--x--",
            400,
            "multipart/form-data: ",
        ),
        (
            &[token],
            &large,
            413,
            "a larger body than is read, expected at most 102400 bytes",
        ),
    ] {
        let answer = served.post("/v1/predict", headers, body);
        let found = answer.json()["error"].as_str().unwrap_or_default().to_owned();
        assert!(
            answer.status == status && found.contains(error),
            "{answer:?}, expected {status} {error}"
        );
    }
    assert_eq!(served.post("/v1/predict?top=1", &[token], &image).status, 400);
    assert_eq!(
        served.request("DELETE", "/v1/predict", &[token], b"").unwrap().status,
        405
    );
    for path in [
        "/v1/../../etc/passwd",
        "/page.html",
        "/%2e%2e/models/model.safetensors",
        "//v1",
    ] {
        assert_eq!(served.get(path).status, 404, "{path}");
    }
    // No length is announced, and no end comes.
    let start = "POST /v1/predict HTTP/1.1\r\nhost: test\r\nauthorization: Bearer secret\r\n";
    let chunk = format!("{start}transfer-encoding: chunked\r\n\r\n40000\r\n");
    let endless = served.send(&[chunk.as_bytes(), &vec![0; 0x40000]].concat());
    assert!(endless.map_or(true, |answer| [413, 0].contains(&answer.status)));
    let slow = served
        .send(format!("{start}content-length: 1000\r\n\r\nslow").as_bytes())
        .unwrap();
    assert_eq!(
        (slow.status, slow.json()["error"].clone()),
        (408, "the body took longer than 1 s to arrive".into())
    );
    let mut broken = TcpStream::connect(&served.address).unwrap();
    broken.write_all(b"POST /v1/predict HTTP/1.1\r\nhost").unwrap();
    drop(broken);
    assert!(served.send(b"\x00\xff no request\r\n\r\n").is_ok());
    assert_eq!(served.post("/v1/predict", &[token], &image).status, 200);
    served.end();
}

/// A page from elsewhere, whose name was turned to this machine, is in one of its browsers.
#[test]
fn without_a_token_only_pages_of_this_machine_are_answered() {
    let project = trained();
    let ask = |served: &Served, headers: &str| {
        let request = format!("GET /v1/model HTTP/1.1\r\nconnection: close\r\n{headers}\r\n\r\n");
        served.send(request.as_bytes()).unwrap().status
    };
    let served = Served::start(&project, &[]);
    for (headers, status) in [
        (format!("host: {}", served.address), 200),
        ("host: localhost:9000\r\norigin: http://localhost:9000".to_owned(), 200),
        ("host: [::1]".to_owned(), 200),
        ("host: evil.example:8080".to_owned(), 403),
        ("host: 127.0.0.1.evil.example".to_owned(), 403),
        ("host: localhost\r\norigin: http://evil.example".to_owned(), 403),
        ("host: localhost\r\norigin: null".to_owned(), 403),
    ] {
        assert_eq!(ask(&served, &headers), status, "{headers}");
    }
    assert_eq!(served.get("/healthz").status, 200);
    served.end();
    let served = Served::start(&project, &["--token", "secret"]);
    assert_eq!(
        ask(&served, "host: luthier.example\r\nauthorization: Bearer secret"),
        200
    );
    served.end();
    for token in ["", "\n", "two words", "café", "100%", "a\nb"] {
        let ran = project.run(&["serve", "--token", token]);
        let is_refused = ran.status == 2
            && ran.stderr.contains("--token")
            && ran.stderr.contains("expected visible")
            && (token.trim().is_empty() || !ran.stderr.contains(token));
        assert!(is_refused, "{token:?}: {}", ran.stderr);
    }
    // A file that becomes a variable often ends in a newline.
    let served = Served::start(&project, &["--token", "se#cret/+=~\n"]);
    let bearer = "host: luthier.example\r\nauthorization: Bearer se#cret/+=~";
    assert_eq!(ask(&served, bearer), 200);
    served.end();
}

#[test]
fn a_signal_ends_the_download_before_the_first_request() {
    let project = trained();
    // As if the model had been trained with weights that are not here.
    let path = project.path("models/model.safetensors");
    let mut model = std::fs::read(&path).unwrap();
    let untrained = WeightsSource::Untrained.sha256().unwrap();
    let other = NamedWeights::ALL[0].sha256;
    assert_eq!(untrained.len(), other.len());
    let place = model.windows(other.len()).position(|part| part == untrained.as_bytes());
    model[place.unwrap()..][..other.len()].copy_from_slice(other.as_bytes());
    std::fs::write(&path, model).unwrap();
    // A server that takes the question, and says nothing.
    let mirror = TcpListener::bind("127.0.0.1:0").unwrap();
    mirror.set_nonblocking(true).unwrap();
    let mut child = project
        .command(&["serve", "--listen", "127.0.0.1:0"])
        .env_remove("LUTHIER_WEIGHTS")
        .env("NO_PROXY", "127.0.0.1")
        .env(
            "LUTHIER_WEIGHTS_MIRROR",
            format!("http://{}", mirror.local_addr().unwrap()),
        )
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let _asked = loop {
        match mirror.accept() {
            Ok(asked) => break asked,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        assert_eq!(child.try_wait().unwrap(), None, "it ended without a question");
        std::thread::sleep(Duration::from_millis(10));
    };
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").arg(&pid).status().unwrap().success());
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.error(), (130, "error: interrupted"));
}

#[test]
fn bodies_take_no_more_memory_together_than_there_is_room_for() {
    let project = trained();
    let served = Served::start(&project, &["--max-body", "800MiB"]);
    let announce = || {
        let mut stream = TcpStream::connect(&served.address).unwrap();
        let head = format!("POST /v1/predict HTTP/1.1\r\nhost: {}\r\n", served.address);
        let length = 700 << 20;
        write!(stream, "{head}connection: close\r\ncontent-length: {length}\r\n\r\n").unwrap();
        stream
    };
    let send = |stream: &mut TcpStream, n_mib: usize| {
        let part = vec![0; 1 << 20];
        (0..n_mib).try_for_each(|_| stream.write_all(&part))
    };
    // Whoever only announces takes no room.
    let waiting: Vec<TcpStream> = (0..20).map(|_| announce()).collect();
    let (mut first, mut second) = (announce(), announce());
    send(&mut first, 699).unwrap();
    // Of 1 GiB, 325 MiB are left.
    send(&mut second, 340).unwrap();
    let refused = read(&mut second).unwrap();
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(served.post("/v1/predict", &[], &photo(2, 5)).status, 200);
    drop(first);
    let mut third = announce();
    send(&mut third, 700).unwrap();
    assert_eq!(read(&mut third).unwrap().status, 422, "no image");
    drop(waiting);
    served.end();
}

#[test]
fn a_full_queue_asks_to_come_again() {
    let project = trained_at_full_size();
    let image = photo(2, 5);
    let served = Served::start(&project, &["--queue", "2"]);
    let body = form(&[("a", &image), ("b", &image), ("c", &image)]);
    let too_many = served.post(
        "/v1/predict",
        &[("content-type", "multipart/form-data; boundary=x")],
        &body,
    );
    assert_eq!(too_many.status, 413);
    let (answered, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| {
                let answer = served.post("/v1/predict", &[], &image);
                match answer.status {
                    200 => answered.fetch_add(1, Ordering::Relaxed),
                    503 if answer.headers.contains("retry-after: 1") => refused.fetch_add(1, Ordering::Relaxed),
                    _ => panic!("{answer:?}"),
                };
            });
        }
    });
    let (answered, refused) = (answered.into_inner(), refused.into_inner());
    assert_eq!(answered + refused, 40);
    assert!(answered >= 2 && refused > 0, "{answered} answered, {refused} refused");
    assert_eq!(served.post("/v1/predict", &[], &image).status, 200);
    served.end();

    // Those who have gone away keep nobody: neither the others nor the end.
    let served = Served::start(&project, &["--queue", "64"]);
    let mut streams: Vec<TcpStream> = (0..64).map(|_| TcpStream::connect(&served.address).unwrap()).collect();
    for stream in &mut streams {
        let head = format!(
            "POST /v1/predict HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n\r\n",
            served.address,
            image.len()
        );
        stream.write_all(&[head.as_bytes(), &image].concat()).unwrap();
    }
    // Until the network works on them.
    std::thread::sleep(Duration::from_millis(300));
    drop(streams);
    served.end();
}

#[test]
fn another_model_and_the_end_lose_no_request() {
    let project = trained_at_full_size();
    let image = photo(2, 5);
    let served = Served::start(&project, &[]);
    let first = served.get("/v1/model").json()["digest"].clone();
    let is_over = AtomicBool::new(false);
    let n_answered = AtomicUsize::new(0);
    let ask = || {
        // The last that are sent may come after the end: then nobody has accepted them.
        while !is_over.load(Ordering::Relaxed) {
            let Ok(answer) = served.request("POST", "/v1/predict", &[], &image) else {
                break;
            };
            match answer.status {
                200 => n_answered.fetch_add(1, Ordering::Relaxed),
                0 if is_over.load(Ordering::Relaxed) => break,
                _ => panic!("{answer:?}"),
            };
        }
    };
    std::thread::scope(|scope| {
        (0..4).for_each(|_| drop(scope.spawn(ask)));
        project.write("models/model.safetensors", b"no model");
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(
            served.get("/v1/model").json()["digest"],
            first,
            "the old model still answers"
        );
        std::fs::remove_file(project.path("models/model.safetensors")).unwrap();
        project.pipeline(&["--variance", "0.5"]);
        while served.get("/v1/model").json()["digest"] == first {
            std::thread::sleep(Duration::from_millis(50));
        }
        is_over.store(true, Ordering::Relaxed);
        served.terminate();
    });
    assert!(n_answered.into_inner() > 4);
    served.end_after_signal();
}

#[test]
fn the_nearest_training_images_are_told_and_shown_where_they_are_at_hand() {
    let project = trained();
    let image = std::fs::read(project.path("data/train/flute/2.jpg")).unwrap();
    let served = Served::start(&project, &["--feature-dir", "features"]);
    let answer = served.post("/v1/predict?nearest=2", &[], &image).json();
    let nearest = answer["nearest"].as_array().unwrap();
    assert_eq!(nearest.len(), 2, "{answer}");
    assert_eq!(nearest[0]["class"], "flute");
    assert!(nearest[0]["cosine"].as_f64().unwrap() > 0.9999, "{answer}");
    let digest = nearest[0]["digest"].as_str().unwrap();
    assert_eq!(digest, Digest::of(&image).to_string());
    let picture = served.get(&format!("/v1/training/{digest}"));
    assert_eq!(picture.status, 200);
    assert!(image::load_from_memory(&picture.body).unwrap().width() <= 192);
    for other in [digest.replace(['a', '1'], "b"), "..%2f..%2fetc%2fpasswd".to_owned()] {
        assert_eq!(served.get(&format!("/v1/training/{other}")).status, 404);
    }
    // Who does not ask is not told.
    assert!(served.post("/v1/predict", &[], &image).json()["nearest"].is_null());
    served.end();
    let served = Served::start(&project, &[]);
    assert!(served.post("/v1/predict?nearest=2", &[], &image).json()["nearest"].is_null());
    assert_eq!(served.get(&format!("/v1/training/{digest}")).status, 404);
    served.end();
    // Features that the model was not trained on.
    project
        .run(&[&["extract", "--views", "pad", "--output-dir", "other"][..], &FOLDERS].concat())
        .ok();
    let ran = project.run(&["serve", "--listen", "127.0.0.1:0", "--feature-dir", "other"]);
    let (status, error) = ran.error();
    assert!(
        status == 1 && error.contains("model was trained on features of"),
        "{error}"
    );
}

#[test]
fn odd_files_are_answered_or_refused_and_harm_nobody() {
    let Some(data) = Need::Photographs.path() else { return };
    let project = trained();
    let served = Served::start(&project, &[]);
    let photograph = std::fs::read(project.path("data/test/harp/5.jpg")).unwrap();
    let before = served.post("/v1/predict", &[], &photograph).body;
    let mut n_files = 0;
    for folder in entries(&data.join("odd-images")).unwrap() {
        for file in entries(&folder).unwrap() {
            let answer = served.post("/v1/predict", &[], &std::fs::read(&file).unwrap());
            let is_expected = matches!(answer.status, 200 | 400 | 413 | 422);
            assert!(is_expected, "{}: {answer:?}", file.display());
            n_files += 1;
        }
    }
    assert!(n_files > 200, "{n_files}");
    assert_eq!(served.post("/v1/predict", &[], &photograph).body, before);
    served.end();
}

#[test]
fn the_page_takes_photographs_that_are_dropped_pasted_and_chosen() {
    let project = trained();
    let served = Served::start(&project, &["--feature-dir", "features"]);
    let photograph = project.path("data/test/harp/5.jpg");
    let answer = served
        .post("/v1/predict", &[], &std::fs::read(&photograph).unwrap())
        .json();
    browser::check_service(&served.url(), &photograph, answer["answer"].as_str().unwrap());
    served.end();
}
