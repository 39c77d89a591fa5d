//! Weights from files, good and bad, and over the network, good and bad.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use luthier_extract::{
    Error, Extractor, ExtractorConfig, InputSize, NamedWeights, Observer, Task, WeightsSource, WeightsStore,
};
use safetensors::tensor::{Dtype, TensorView};

use crate::config;

fn load(path: &Path) -> Result<Extractor, Error> {
    let config = ExtractorConfig {
        weights: WeightsSource::File(path.to_owned()),
        ..config()
    };
    Extractor::load(
        &config,
        InputSize::default(),
        &WeightsStore::new("unused".into(), None),
        1,
        Some(1),
        &(),
    )
}

/// Names and shapes of ResNet-50's tensors, as torchvision's documentation lists its modules.
fn shapes() -> HashMap<String, Vec<usize>> {
    let mut shapes = HashMap::new();
    let mut conv = |conv: &str, norm: &str, shape: [usize; 4]| {
        shapes.insert(format!("{conv}.weight"), shape.to_vec());
        for part in ["weight", "bias", "running_mean", "running_var"] {
            shapes.insert(format!("{norm}.{part}"), vec![shape[0]]);
        }
    };
    conv("conv1", "bn1", [64, 3, 7, 7]);
    let mut n_in = 64;
    for (layer, n_blocks, n) in [(1, 3, 64), (2, 4, 128), (3, 6, 256), (4, 3, 512)] {
        for block in 0..n_blocks {
            let name = format!("layer{layer}.{block}");
            conv(&format!("{name}.conv1"), &format!("{name}.bn1"), [n, n_in, 1, 1]);
            conv(&format!("{name}.conv2"), &format!("{name}.bn2"), [n, n, 3, 3]);
            conv(&format!("{name}.conv3"), &format!("{name}.bn3"), [4 * n, n, 1, 1]);
            if block == 0 {
                conv(
                    &format!("{name}.downsample.0"),
                    &format!("{name}.downsample.1"),
                    [4 * n, n_in, 1, 1],
                );
            }
            n_in = 4 * n;
        }
    }
    shapes
}

fn write(path: &Path, shapes: &HashMap<String, Vec<usize>>, value: f32) {
    let most = shapes
        .values()
        .map(|shape| shape.iter().product::<usize>())
        .max()
        .unwrap();
    let data: Vec<u8> = std::iter::repeat_n(value.to_le_bytes(), most).flatten().collect();
    let view = |shape: &Vec<usize>| {
        TensorView::new(Dtype::F32, shape.clone(), &data[..4 * shape.iter().product::<usize>()]).unwrap()
    };
    let tensors = shapes.iter().map(|(name, shape)| (name, view(shape)));
    std::fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

#[test]
fn files_that_are_not_resnet50_are_errors_that_say_what_is_wrong() {
    type Change = fn(&mut HashMap<String, Vec<usize>>);
    let cases: [(Change, f32, &str); 6] = [
        (|_| {}, 0.5, ""),
        (
            |shapes| {
                shapes.insert("fc.weight".into(), vec![1000, 2048]);
                shapes.insert("bn1.num_batches_tracked".into(), vec![1]);
            },
            0.5,
            "",
        ),
        (
            |shapes| {
                shapes.insert("layer1.0.conv2.weight".into(), vec![64, 64, 1, 1]);
            },
            0.5,
            "layer1.0.conv2.weight of shape [64, 64, 1, 1] instead of [64, 64, 3, 3]",
        ),
        (
            |shapes| {
                shapes.remove("layer4.2.bn3.bias");
                shapes.remove("layer4.2.bn3.weight");
            },
            0.5,
            "2 tensors missing, the first is layer4.2.bn3.weight",
        ),
        (
            |shapes| {
                shapes.insert("layer3.6.conv1.weight".into(), vec![256, 1024, 1, 1]);
            },
            0.5,
            "layer3.6.conv1.weight, which ResNet-50 lacks",
        ),
        (|_| {}, f32::NAN, "conv1.weight with values that are not finite"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    for (change, value, expected) in cases {
        let mut shapes = shapes();
        change(&mut shapes);
        write(&path, &shapes, value);
        match load(&path) {
            Ok(_) => assert_eq!(expected, ""),
            Err(error) => assert_eq!(
                error.to_string(),
                format!(
                    "{}: expected the tensors of ResNet-50 in a .safetensors or .pth file, found {expected}",
                    path.display()
                )
            ),
        }
    }
    std::fs::write(&path, b"PK, a zip file").unwrap();
    assert!(matches!(load(&path).unwrap_err(), Error::Weights { .. }));
}

#[test]
fn a_name_that_nobody_knows_is_an_error_that_lists_the_known_ones() {
    assert_eq!(
        WeightsSource::parse("resnet51").unwrap_err().to_string(),
        "resnet51: expected a .safetensors file, `untrained`, or one of resnet50-imagenet1k-v1, \
         resnet50-imagenet1k-a1, found none of them"
    );
}

/// A server on this machine that answers each request with the next of these responses, and gives
/// back the requests.
fn serve(responses: Vec<Vec<u8>>) -> (String, std::thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let requests = std::thread::spawn(move || {
        let answer = |response: Vec<u8>| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
            let request: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
            stream.write_all(&response).unwrap();
            request.join("\n").to_lowercase()
        };
        responses.into_iter().map(answer).collect()
    });
    (address, requests)
}

/// A server that sends half of a body and then nothing, until the connection is closed from the
/// other side.
fn stall(response: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&response).unwrap();
        // Reads the request, then waits for the end of the connection.
        while stream.read(&mut [0; 1024]).is_ok_and(|n| n > 0) {}
    });
    address
}

/// A user who interrupts once something has come.
#[derive(Default)]
struct Impatient {
    got: AtomicU64,
}

impl Observer for Impatient {
    fn task(&self, _: &str, _: u64) -> Box<dyn Task + '_> {
        Box::new(self)
    }
    fn is_interrupted(&self) -> bool {
        self.got.load(Ordering::Relaxed) > 0
    }
}

impl Task for &Impatient {
    fn advance(&self, units: u64) {
        self.got.fetch_add(units, Ordering::Relaxed);
    }
}

fn response(status: &str, length: usize, body: &[u8]) -> Vec<u8> {
    let mut response =
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n").into_bytes();
    response.extend(body);
    response
}

#[test]
fn a_broken_download_is_continued_and_its_digest_checked() {
    static BODY: &[u8] = b"not really the weights of a network, but bytes with a known digest";
    let weights = NamedWeights::new("test", "for tests", "owner/model/file.safetensors", sha256(BODY));
    let folder = tempfile::tempdir().unwrap();
    let (mirror, requests) = serve(vec![
        response("200 OK", BODY.len(), &BODY[..20]),
        response("206 Partial Content", BODY.len() - 20, &BODY[20..]),
    ]);
    let store = WeightsStore::new(folder.path().join("weights"), Some(mirror));

    let error = store.fetch(&weights, &()).unwrap_err();
    assert!(matches!(error, Error::Download { .. }), "{error}");
    assert!(!store.has(&weights));
    let path = store.fetch(&weights, &()).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), BODY);
    assert!(
        !path.with_extension("safetensors.part").exists(),
        "no partial file stays"
    );
    // Now it is there: nobody is asked.
    assert_eq!(store.fetch(&weights, &()).unwrap(), path);

    let requests = requests.join().unwrap();
    assert!(
        requests[0].starts_with("get /owner/model/file.safetensors "),
        "{}",
        requests[0]
    );
    assert!(requests[1].contains("range: bytes=20-"), "{}", requests[1]);
}

static WORDS: &[u8] = b"half of this text comes at once, the other half never";

#[test]
fn a_server_that_falls_silent_ends_a_download_which_is_continued_later() {
    let weights = NamedWeights::new("test", "for tests", "file", sha256(WORDS));
    let folder = tempfile::tempdir().unwrap();
    let store = |mirror| WeightsStore::new(folder.path().into(), Some(mirror));
    let silent = store(stall(response("200 OK", WORDS.len(), &WORDS[..20])));
    let error = silent
        .with_stall_limit(Duration::from_millis(200))
        .fetch(&weights, &())
        .unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Download { message, .. } if message == "the server sent nothing for 0.2 s, after 20 of 53 bytes"
        ),
        "{error}"
    );
    let (mirror, requests) = serve(vec![response("206 Partial Content", WORDS.len() - 20, &WORDS[20..])]);
    let path = store(mirror).fetch(&weights, &()).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), WORDS);
    assert!(requests.join().unwrap()[0].contains("range: bytes=20-"));
}

#[test]
fn an_interrupt_ends_a_download_while_the_server_is_silent() {
    let weights = NamedWeights::new("test", "for tests", "file", sha256(WORDS));
    let folder = tempfile::tempdir().unwrap();
    let mirror = stall(response("200 OK", WORDS.len(), &WORDS[..20]));
    // The limit is longer than anybody waits for a test.
    let store = WeightsStore::new(folder.path().into(), Some(mirror)).with_stall_limit(Duration::from_secs(3600));
    let error = store.fetch(&weights, &Impatient::default()).unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
    let partial = store.path(&weights).with_extension("safetensors.part");
    assert_eq!(std::fs::read(partial).unwrap(), WORDS[..20], "what came is kept");
}

#[test]
fn other_bytes_than_promised_are_refused_and_not_kept() {
    let weights = NamedWeights::new("test", "for tests", "file", sha256(b"what was promised"));
    let folder = tempfile::tempdir().unwrap();
    let (mirror, _requests) = serve(vec![response("200 OK", 8, b"an error")]);
    let store = WeightsStore::new(folder.path().join("weights"), Some(mirror.clone()));
    let error = store.fetch(&weights, &()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{mirror}/file: expected SHA-256 {}, found {}: the file there is not the one that test stands for",
            weights.sha256,
            sha256(b"an error")
        )
    );
    assert!(error.hint().unwrap().contains("pass an older copy with --weights FILE"));
    assert!(!store.has(&weights) && !folder.path().join("weights/test.safetensors.part").exists());
}

#[test]
fn without_a_server_the_error_names_three_ways_out() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mirror = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let folder = tempfile::tempdir().unwrap();
    let store = WeightsStore::new(folder.path().into(), Some(mirror));
    let error = store.fetch(&NamedWeights::ALL[0], &()).unwrap_err();
    let hint = error.hint().unwrap();
    for way in [
        "LUTHIER_WEIGHTS_MIRROR",
        "--weights FILE.safetensors",
        "--weights untrained",
    ] {
        assert!(hint.contains(way), "{hint}");
    }
}

fn sha256(bytes: &[u8]) -> &'static str {
    use sha2::{Digest, Sha256};
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    hex.leak()
}

/// A checkpoint as `torch.save` writes it, with one value everywhere.
fn checkpoint(shapes: &HashMap<String, Vec<usize>>, value: f32) -> Vec<u8> {
    let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let whole = |number: usize| [b"J", &(number as i32).to_le_bytes()[..]].concat();
    let tuple = |numbers: &[usize]| {
        let numbers: Vec<u8> = numbers.iter().flat_map(|&number| whole(number)).collect();
        [b"(", &numbers[..], b"t"].concat()
    };
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = zip::write::FileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut program = b"\x80\x02}(".to_vec();
    for (key, (name, shape)) in shapes.iter().enumerate() {
        let n: usize = shape.iter().product();
        let strides: Vec<usize> = (0..shape.len())
            .map(|axis| shape[axis + 1..].iter().product())
            .collect();
        program.extend(text(&format!("module.{name}")));
        program.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        program.extend(text("storage"));
        program.extend(b"ctorch\nFloatStorage\n");
        program.extend([text(&key.to_string()), text("cpu"), whole(n)].concat());
        program.extend(b"tQ");
        program.extend([whole(0), tuple(shape), tuple(&strides)].concat());
        program.extend(b"\x89ccollections\nOrderedDict\n)RtR");
        archive.start_file(format!("archive/data/{key}"), stored).unwrap();
        archive.write_all(&value.to_le_bytes().repeat(n)).unwrap();
    }
    program.extend(b"u.");
    archive.start_file("archive/data.pkl", stored).unwrap();
    archive.write_all(&program).unwrap();
    archive.finish().unwrap().into_inner()
}

#[test]
fn a_checkpoint_gives_the_features_of_a_safetensors_file_with_the_same_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let [safetensors, pth] = ["a.safetensors", "a.pth"].map(|name| folder.path().join(name));
    write(&safetensors, &shapes(), 0.01);
    std::fs::write(&pth, checkpoint(&shapes(), 0.01)).unwrap();
    let pixels: Vec<u8> = (0..InputSize::default().bytes())
        .map(|place| (place % 251) as u8)
        .collect();
    let features = |path| load(path).unwrap().embed_pixels(&pixels).unwrap();
    assert_eq!(features(&safetensors), features(&pth));
}

#[test]
fn what_pytorch_and_hugging_face_have_downloaded_is_not_downloaded_again() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = checkpoint(&shapes(), 0.01);
    // Nobody listens there.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mirror = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let weights: &'static NamedWeights = Box::leak(Box::new(
        NamedWeights::new(
            "stand-in",
            "for tests",
            "owner/model/resolve/main/file.safetensors",
            sha256(b"hub"),
        )
        .or_checkpoint("models/stand-in.pth", sha256(&bytes)),
    ));
    let (torch, hub) = (folder.path().join("torch"), folder.path().join("hub"));
    let store = WeightsStore::new(folder.path().join("own"), Some(mirror)).with_caches(torch.clone(), hub.clone());
    assert!(!store.has(weights));
    let load = || {
        let config = ExtractorConfig {
            weights: WeightsSource::Named(weights),
            ..config()
        };
        Extractor::load(&config, InputSize::default(), &store, 1, Some(1), &())
    };
    assert!(matches!(load().unwrap_err(), Error::Download { .. }));

    std::fs::create_dir_all(torch.join("hub/checkpoints")).unwrap();
    let of_torch = torch.join("hub/checkpoints/stand-in.pth");
    // A file that cannot be read is passed over: here one that not even root may read from its beginning.
    #[cfg(target_os = "linux")]
    {
        std::os::unix::fs::symlink("/proc/self/mem", &of_torch).unwrap();
        assert!(matches!(load().unwrap_err(), Error::Download { .. }));
        assert!(matches!(store.fetch(weights, &()).unwrap_err(), Error::Download { .. }));
        std::fs::remove_file(&of_torch).unwrap();
    }
    // So is a file that PyTorch's download broke off.
    std::fs::write(&of_torch, &bytes[..1000]).unwrap();
    assert!(matches!(load().unwrap_err(), Error::Download { .. }));
    std::fs::write(&of_torch, &bytes).unwrap();
    load().unwrap();
    assert_eq!(store.fetch(weights, &()).unwrap(), of_torch);

    let blobs = hub.join("models--owner--model/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(weights.sha256), b"hub").unwrap();
    assert_eq!(store.fetch(weights, &()).unwrap(), blobs.join(weights.sha256));
}

#[test]
fn if_the_first_server_fails_the_second_is_asked() {
    static BODY: &[u8] = b"a checkpoint";
    let weights = NamedWeights::new(
        "test",
        "for tests",
        "owner/model/resolve/main/file.safetensors",
        sha256(b"hub"),
    )
    .or_checkpoint("models/test-12345678.pth", sha256(BODY));
    let folder = tempfile::tempdir().unwrap();
    let (mirror, requests) = serve(vec![
        response("503 Service Unavailable", 0, b""),
        response("200 OK", BODY.len(), BODY),
    ]);
    let store = WeightsStore::new(folder.path().into(), Some(mirror));
    assert_eq!(store.fetch(&weights, &()).unwrap(), folder.path().join("test.pth"));
    let requests = requests.join().unwrap();
    assert!(
        requests[0].starts_with("get /owner/model/resolve/main/file.safetensors "),
        "{}",
        requests[0]
    );
    assert!(
        requests[1].starts_with("get /models/test-12345678.pth "),
        "{}",
        requests[1]
    );
    assert_eq!(store.path(&weights), folder.path().join("test.pth"));
}
