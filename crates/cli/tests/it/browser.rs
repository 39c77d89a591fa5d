//! The report's page as a reader uses it, in headless Chromium over the DevTools protocol.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use base64::Engine as _;
use luthier_testing::Need;
use serde_json::{Value, json};

use crate::{Project, bitmap};

const PROGRAMS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// Chromium with one empty page.
struct Browser {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    session: Option<String>,
    n_calls: u64,
    /// What the page reported since it was opened, in the protocol's words.
    events: Vec<Value>,
    _profile: tempfile::TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let ended = self.process.kill().and_then(|()| self.process.wait());
        if let Err(error) = ended {
            eprintln!("chromium does not end: {error}");
        }
    }
}

impl Browser {
    /// `None` if there is no Chromium.
    fn start() -> Option<Self> {
        let is_there = |program: &&str| {
            let mut version = Command::new(program);
            version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
            version.status().is_ok_and(|status| status.success())
        };
        let Some(program) = PROGRAMS.into_iter().find(is_there) else {
            Need::Chromium.skip();
            return None;
        };
        let profile = tempfile::tempdir().unwrap();
        // Chromium reads commands from descriptor 3 and writes answers to 4. Its sandbox does not work for root.
        let mut process = Command::new("sh")
            .args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 > /dev/null 2>&1"#, program])
            .args(["--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut browser = Browser {
            to: process.stdin.take().unwrap(),
            from: BufReader::new(process.stdout.take().unwrap()),
            process,
            session: None,
            n_calls: 0,
            events: Vec::new(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let target = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", target);
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Log", "Network", "Accessibility"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    /// Calls a method of the protocol; the result is its answer.
    fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.n_calls += 1;
        let mut message = json!({ "id": self.n_calls, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let message = self.next_message();
            if message["id"] == self.n_calls {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    fn next_message(&mut self) -> Value {
        let mut bytes = Vec::new();
        self.from.read_until(0, &mut bytes).unwrap();
        assert_eq!(bytes.pop(), Some(0), "chromium ended");
        serde_json::from_slice(&bytes).unwrap()
    }

    /// Opens a file and waits until it has loaded.
    fn open(&mut self, page: &Path) {
        self.open_address(&format!("file://{}", page.display()));
    }

    fn open_address(&mut self, address: &str) {
        self.events.clear();
        self.call("Page.navigate", json!({ "url": address }));
        while !self.events.iter().any(|event| event["method"] == "Page.loadEventFired") {
            let event = self.next_message();
            self.events.push(event);
        }
    }

    fn events_of<'a>(&'a self, method: &'a str) -> impl Iterator<Item = &'a Value> {
        let of_method = self.events.iter().filter(move |event| event["method"] == method);
        of_method.map(|event| &event["params"])
    }

    /// The value of a JavaScript expression.
    #[track_caller]
    fn value(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "returnByValue": true });
        let answer = self.call("Runtime.evaluate", parameters);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    #[track_caller]
    fn number(&mut self, expression: &str) -> f64 {
        let value = self.value(expression);
        value.as_f64().unwrap_or_else(|| panic!("{expression}: {value}"))
    }

    #[track_caller]
    fn words(&mut self, expression: &str) -> String {
        let value = self.value(expression);
        value
            .as_str()
            .unwrap_or_else(|| panic!("{expression}: {value}"))
            .to_owned()
    }

    /// Clicks with the mouse on the middle of the first element that a selector finds.
    #[track_caller]
    fn click(&mut self, selector: &str) {
        let place = self.value(&format!(
            "(() => {{ const element = document.querySelector('{selector}');
               element.scrollIntoView({{ block: 'center', inline: 'center' }});
               const box = element.getBoundingClientRect();
               return [box.x + box.width / 2, box.y + box.height / 2]; }})()"
        ));
        for kind in ["mouseMoved", "mousePressed", "mouseReleased"] {
            let parameters = json!({ "type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", parameters);
        }
    }

    /// Presses and releases a key.
    fn press(&mut self, key: &str) {
        let (code, text) = match key {
            "Tab" => (9, None),
            "Enter" => (13, Some("\r")),
            "ArrowLeft" => (37, None),
            "ArrowUp" => (38, None),
            "ArrowRight" => (39, None),
            "ArrowDown" => (40, None),
            _ if key.len() == 1 => (u32::from(key.as_bytes()[0].to_ascii_uppercase()), Some(key)),
            _ => panic!("{key}"),
        };
        let parameters = json!({ "type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": code });
        let mut pressed = parameters.clone();
        if let Some(text) = text {
            pressed["text"] = json!(text);
        }
        self.call("Input.dispatchKeyEvent", pressed);
        let mut released = parameters;
        released["type"] = json!("keyUp");
        self.call("Input.dispatchKeyEvent", released);
    }

    /// Presses the tab key until an element that the selector finds has the focus.
    #[track_caller]
    fn tab_to(&mut self, selector: &str) {
        let n_stops = self.number("document.querySelectorAll('a, button, input, select, summary, [tabindex]').length");
        for _ in 0..=n_stops as usize {
            self.press("Tab");
            if self.value(&format!("document.activeElement.matches('{selector}')")) == true {
                return;
            }
        }
        panic!("the tab key does not reach {selector}");
    }

    /// Chooses a file where the page asks for one.
    fn choose(&mut self, selector: &str, file: &Path) {
        let root = self.call("DOM.getDocument", json!({}));
        let query = json!({ "nodeId": root["root"]["nodeId"], "selector": selector });
        let input = self.call("DOM.querySelector", query);
        let files = json!({ "nodeId": input["nodeId"], "files": [file.display().to_string()] });
        self.call("DOM.setFileInputFiles", files);
    }

    fn resize(&mut self, width: u32) {
        let metrics = json!({ "width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500 });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
    }
}

/// Names of rows, top down.
const ROWS: &str = "[...document.querySelectorAll('.sortable tbody th')].map((cell) => cell.textContent)";

/// The images that are listed or shown below the matrix, by the cell that they belong to.
const SHOWN: &str = "[...document.querySelectorAll('#images li[id]')].filter((image) => !image.closest('[hidden]'))
    .map((image) => image.closest('[data-cell]').dataset.cell)";

fn check_sorting(browser: &mut Browser) {
    let f1 = "[...document.querySelectorAll('.sortable tbody tr')].map((row) => parseFloat(row.cells[3].textContent))";
    let f1: Vec<f64> = serde_json::from_value(browser.value(f1)).unwrap();
    assert!(f1.is_sorted(), "the worst first: {f1:?}");
    let numbers = |browser: &mut Browser| -> Vec<f64> {
        let column = browser.value(
            "[...document.querySelectorAll('.sortable tbody tr')].map((row) => parseFloat(row.cells[2].textContent))",
        );
        serde_json::from_value(column).unwrap()
    };
    let before = numbers(browser);
    assert!(
        before.windows(2).any(|pair| pair[0] != pair[1]),
        "nothing to sort: {before:?}"
    );
    let header = ".sortable th:nth-child(3) button";
    let state = "document.querySelector('.sortable th:nth-child(3)').ariaSort";
    browser.click(header);
    assert!(numbers(browser).is_sorted(), "{:?}", numbers(browser));
    assert_eq!(browser.value(state), "ascending");
    browser.click(header);
    assert!(numbers(browser).is_sorted_by(|a, b| a >= b), "{:?}", numbers(browser));
    assert_eq!(browser.value(state), "descending");
    let n_sorted = browser.number("document.querySelectorAll('.sortable [aria-sort]').length");
    assert_eq!(n_sorted, 1.0, "one column says that it is sorted");
    browser.click(".sortable th:first-child button");
    let names: Vec<String> = serde_json::from_value(browser.value(ROWS)).unwrap();
    assert!(names.is_sorted(), "{names:?}");
}

/// Whether the images of a cell, and they alone, are shown, and the status says so.
#[track_caller]
fn check_chosen(browser: &mut Browser, name: &str) {
    let label = browser.words(&format!("document.querySelector('[data-cell=\"{name}\"]').ariaLabel"));
    let count = browser.number(&format!(
        "Number(document.querySelector('[data-cell=\"{name}\"] .of-images').textContent)"
    ));
    let shown = browser.value(SHOWN);
    assert_eq!(shown, json!(vec![name; count as usize]), "{label}");
    let status = browser.words("document.getElementById('shown').textContent");
    assert!(
        status.starts_with(&label) && status.contains(&format!(" {count} image")),
        "{status}"
    );
}

fn check_matrix(browser: &mut Browser) {
    let all = browser.value(SHOWN);
    let show_all = "getComputedStyle(document.getElementById('show-all')).display";
    assert_eq!(browser.value(show_all), "none");
    for kind in ["miss", "hit"] {
        let name = browser.words(&format!(
            "document.querySelector('.matrix .{kind} button').dataset.cell"
        ));
        browser.click(&format!(".matrix .{kind} button"));
        check_chosen(browser, &name);
        let visible = "[...document.querySelectorAll('#images li[id]')].some((image) => image.checkVisibility())";
        assert_eq!(browser.value(visible), true, "lists are open");
        browser.click("#show-all");
        assert_eq!(browser.value(SHOWN), all);
        assert_eq!(browser.value(show_all), "none");
    }
    let shares = "document.querySelector('.matrix .hit button').innerText";
    let count = browser.words(shares);
    browser.click("#as-shares");
    let share = browser.words(shares);
    let label = browser.words("document.querySelector('.matrix .hit button').ariaLabel");
    let of: f64 = label.rsplit(' ').next().unwrap().parse().unwrap();
    assert_eq!(
        share,
        format!("{:.0}", 100.0 * count.parse::<f64>().unwrap() / of),
        "{label}"
    );
}

fn check_keyboard(browser: &mut Browser) {
    browser.tab_to(".sortable th button");
    browser.press("Enter");
    let state = "document.querySelector('.sortable th:first-child').ariaSort";
    assert_eq!(browser.value(state), "ascending");
    browser.press("Enter");
    assert_eq!(browser.value(state), "descending");

    browser.tab_to(".matrix button");
    let focused = "document.activeElement.dataset.cell";
    let first = browser.words(focused);
    // The first class of the data that are checked is taken for others, or others for it.
    browser.press("ArrowRight");
    browser.press("ArrowDown");
    let next = browser.words(focused);
    assert_ne!(next, first);
    browser.press("Enter");
    check_chosen(browser, &next);
    browser.tab_to("#show-all");
    browser.press("Enter");
    assert_eq!(
        browser.words("document.getElementById('shown').textContent"),
        "Below are all images."
    );
    assert_eq!(browser.words(focused), next, "the focus is not lost with the button");
}

fn check_map(browser: &mut Browser) {
    browser.tab_to("#map");
    let panel = "document.getElementById('point').innerText";
    let mut seen = vec![browser.words(panel)];
    for key in ["ArrowRight", "ArrowDown"] {
        browser.press(key);
        seen.push(browser.words(panel));
    }
    assert!(seen[1].contains(['/', '.']) && seen[1].contains('%'), "{seen:?}");
    assert!(seen[0] != seen[1] && seen[1] != seen[2], "{seen:?}");
    // The files of a class lie in its folder.
    let (class, _) = seen[1].split_once(", ").unwrap();
    assert!(seen[1].contains(&format!("\n{class}/")), "{seen:?}");
    let chosen = browser.words("document.getElementById('highlight').options[1].text");
    browser.value("document.getElementById('highlight').selectedIndex = 1");
    browser.value("document.getElementById('highlight').dispatchEvent(new Event('change'))");
    let faded = browser.number("document.querySelectorAll('#map .point.faded').length");
    let classes = browser.number("document.querySelectorAll('.sortable tbody tr').length");
    assert_eq!(faded, classes - 1.0, "all but {chosen}");
}

fn check_looks(browser: &mut Browser) {
    let background = |browser: &mut Browser, media: &str, scheme: &str| {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        browser.call(
            "Emulation.setEmulatedMedia",
            json!({ "media": media, "features": features }),
        );
        browser.words("getComputedStyle(document.body).backgroundColor")
    };
    let light = background(browser, "screen", "light");
    assert_ne!(background(browser, "screen", "dark"), light);
    assert_eq!(
        background(browser, "print", "dark"),
        "rgb(255, 255, 255)",
        "paper is white"
    );
    background(browser, "", "light");
    for width in [390, 1_280] {
        browser.resize(width);
        let needed = browser.number("document.documentElement.scrollWidth");
        assert!(needed <= f64::from(width), "{needed} of {width} pixels");
    }
}

/// Whether everything that can be operated says what it is.
fn check_names(browser: &mut Browser, fewest: usize) {
    let tree = browser.call("Accessibility.getFullAXTree", json!({}));
    let operable = |node: &&Value| {
        let properties = node["properties"].as_array().map_or(&[][..], Vec::as_slice);
        let focusable = properties
            .iter()
            .any(|property| property["name"] == "focusable" && property["value"]["value"] == true);
        let shown = node["ignored"] == false && node["role"]["value"] != "RootWebArea";
        shown && (focusable || node["role"]["value"] == "image")
    };
    let nodes: Vec<&Value> = tree["nodes"].as_array().unwrap().iter().filter(operable).collect();
    assert!(nodes.len() > fewest, "{}", nodes.len());
    for node in nodes {
        let name = node["name"]["value"].as_str().unwrap_or_default();
        assert!(!name.trim().is_empty(), "{node}");
    }
}

/// Whether the page complained of anything but `expected`.
fn check_console(browser: &Browser, expected: Option<&str>) {
    let complaints: Vec<&Value> = (browser.events_of("Runtime.consoleAPICalled"))
        .chain(browser.events_of("Runtime.exceptionThrown"))
        .chain(browser.events_of("Log.entryAdded"))
        .filter(|event| expected.is_none_or(|expected| !event.to_string().contains(expected)))
        .collect();
    assert!(complaints.is_empty(), "{complaints:?}");
}

/// Whether the page complained, or asked for anything but itself and what it brings.
fn check_silence(browser: &Browser) {
    check_console(browser, None);
    let requests: Vec<&str> = (browser.events_of("Network.requestWillBeSent"))
        .map(|event| event["request"]["url"].as_str().unwrap())
        .filter(|address| !address.starts_with("data:"))
        .collect();
    assert!(
        matches!(requests[..], [page] if page.ends_with("/report.html")),
        "{requests:?}"
    );
}

/// Whether the page can be read where no script runs.
fn check_without_script(browser: &mut Browser, page: &Path) {
    browser.call("Emulation.setScriptExecutionDisabled", json!({ "value": true }));
    browser.open(page);
    assert_eq!(browser.value("document.querySelector('.matrix button').disabled"), true);
    assert_eq!(
        browser.value("document.getElementById('shown').checkVisibility()"),
        false
    );
    let cards = "[...document.querySelectorAll('.cards > li')]";
    let n_cards = browser.number(&format!("{cards}.length"));
    assert!(n_cards > 0.0);
    let n_shown = browser.number(&format!("{cards}.filter((card) => card.checkVisibility()).length"));
    assert_eq!(n_shown, n_cards);
    let picture = "getComputedStyle(document.querySelector('.cards .photo')).backgroundImage";
    assert!(
        browser.words(picture).starts_with("url("),
        "the cards show their pictures"
    );
    check_silence(browser);
    browser.call("Emulation.setScriptExecutionDisabled", json!({ "value": false }));
}

/// What the page of a service does with this photograph, however it comes. Screenshots go to `$LUTHIER_TEST_SCREENSHOTS`.
pub(crate) fn check_service(address: &str, photograph: &Path, answer: &str) {
    let Some(mut browser) = Browser::start() else { return };
    browser.resize(390);
    browser.open_address(address);
    let about = "document.getElementById('about').textContent";
    wait(&mut browser, &format!("{about}.includes('3 classes')"));
    let bytes = base64::engine::general_purpose::STANDARD.encode(std::fs::read(photograph).unwrap());
    let transfer = |name: &str| {
        format!(
            "(() => {{ const bytes = Uint8Array.from(atob('{bytes}'), (c) => c.charCodeAt(0));
               const transfer = new DataTransfer();
               transfer.items.add(new File([bytes], '{name}', {{ type: 'image/jpeg' }}));
               return transfer; }})()"
        )
    };
    let event = |kind: &str, part: &str, name: &str| {
        format!(
            "document.body.dispatchEvent(new {part}('{}', {{ bubbles: true, cancelable: true, {}: {} }})), 0",
            kind,
            if part == "ClipboardEvent" {
                "clipboardData"
            } else {
                "dataTransfer"
            },
            transfer(name)
        )
    };
    browser.value(&event("drop", "DragEvent", "dropped.jpg"));
    browser.value(&event("paste", "ClipboardEvent", "pasted.jpg"));
    browser.choose("#choose", photograph);
    let done = "document.querySelectorAll('.answer:not([aria-busy])').length";
    wait(&mut browser, &format!("{done} === 3"));
    let titles = browser.value("[...document.querySelectorAll('.answer h2')].map((title) => title.textContent)");
    assert_eq!(titles, json!([answer, answer, answer]));
    let bars = browser.number("document.querySelectorAll('.answer meter').length");
    assert_eq!(bars, 9.0, "three classes for each");
    let shown = "[...document.querySelectorAll('.near img')].filter((image) => image.naturalWidth > 0).length";
    wait(&mut browser, &format!("{shown} === 9"));
    // What is no photograph is said to be none.
    let text = transfer("note.jpg").replace(&bytes, "bm90ZQ==");
    browser.value(&format!(
        "document.body.dispatchEvent(new DragEvent('drop', {{ bubbles: true, dataTransfer: {text} }})), 0"
    ));
    wait(&mut browser, &format!("{done} === 4"));
    let failed = browser.words("document.querySelector('.answer.failed').textContent");
    assert!(failed.contains("could not be read"), "{failed}");
    // A proxy refuses in its own words, and the page goes on.
    let proxy =
        "window.ask_service = window.fetch, window.fetch = async () => new Response('<html>', { status: 413 }), 0";
    browser.value(proxy);
    browser.value(&event("drop", "DragEvent", "large.jpg"));
    wait(&mut browser, &format!("{done} === 5"));
    let failed = browser.words("document.querySelector('.answer.failed').textContent");
    assert!(failed.contains("HTTP 413"), "{failed}");
    browser.value("window.fetch = window.ask_service, 0");
    browser.tab_to("#choose");
    check_widths(&mut browser, "serve");
    check_names(&mut browser, 3);
    // The browser tells of the answer to what is no photograph.
    check_console(&browser, Some("422"));
    for event in browser.events_of("Network.requestWillBeSent") {
        let asked = event["request"]["url"].as_str().unwrap();
        let is_own = [address, "data:", "blob:"].iter().any(|start| asked.starts_with(start));
        assert!(is_own, "{asked}");
    }
}

/// The bytes of the file that the page saves: a headless browser has no folder for it.
fn saved_decisions(browser: &mut Browser) -> String {
    browser.value(
        "URL.createObjectURL = (blob) => { blob.text().then((text) => { window.text = text; }); return 'data:,'; }, 0",
    );
    browser.value("window.text = null, 0");
    browser.click("#save-decisions");
    wait(browser, "window.text !== null");
    browser.words("window.text")
}

/// Decides about a suspected image in a report, which shows it as a copy too, by keyboard, and saves; the bytes of the
/// file that is saved.
pub(crate) fn decide(page: &Path, file: &str, verdict: &str) -> Option<String> {
    let mut browser = Browser::start()?;
    browser.resize(390);
    browser.open(page);
    let item = format!(
        "[...document.querySelectorAll('#suspects ~ .cards li')].find((item) => item.textContent.includes('{file}'))"
    );
    let shown = format!("document.querySelectorAll('[data-decision*=\"{file}\"]').length");
    assert!(browser.number(&shown) > 1.0, "as a suspect and as a copy");
    let button = format!("{item}.querySelector('button[value={verdict}]')");
    assert_eq!(
        browser.value(&format!("{item}.querySelector('.photo') !== null")),
        true,
        "a picture"
    );
    browser.value(&format!("{button}.focus(), 0"));
    browser.press("Enter");
    assert_eq!(browser.words(&format!("{button}.getAttribute('aria-pressed')")), "true");
    let status = "document.querySelector('#decisions [role=status]').textContent";
    assert_eq!(browser.words(status), "1 decision.");
    // What is pressed again is taken back.
    browser.press("Enter");
    assert_eq!(browser.words(status), "Nothing is decided.");
    browser.press("Enter");
    let saved = saved_decisions(&mut browser);
    assert_eq!(saved.trim().lines().count(), 1, "{saved}");
    // What was saved and is taken back is a line of its own, also after a reload.
    browser.open(page);
    assert_eq!(browser.words(status), "1 decision. Saved.");
    browser.value(&format!("{button}.click(), 0"));
    let undone = saved_decisions(&mut browser);
    assert!(
        undone.contains("\"verdict\":\"undo\"") && undone.lines().count() == 2,
        "{undone}"
    );
    check_names(&mut browser, 0);
    check_console(&browser, None);
    Some(saved)
}

/// What the example page for onnxruntime-web says of this photograph.
pub(crate) fn answer_of_example(address: &str, photograph: &Path) -> Option<String> {
    let mut browser = Browser::start()?;
    browser.resize(390);
    browser.open_address(address);
    wait(&mut browser, "!document.querySelector('input').disabled");
    browser.choose("input", photograph);
    let answer = "document.querySelector('[role=status]').textContent";
    wait(
        &mut browser,
        &format!("{answer}.endsWith('%') || {answer}.startsWith('This')"),
    );
    check_names(&mut browser, 0);
    check_console(&browser, None);
    Some(browser.words(answer))
}

/// The file that is asked about, or nothing.
const ASKED: &str = "document.getElementById('item').hidden ? '' : document.querySelector('#pictures bdi').textContent";

/// Whether a photograph is on the screen, or none is left. A key counts only once the page has heard that it is loaded.
const IS_SHOWN: &str = "(document.getElementById('item').hidden
    ? document.getElementById('status').textContent.startsWith('Nothing')
    : document.querySelector('#pictures img').complete && unseen === 0)";

/// Answers questions on the page of `luthier label` or `luthier review` by keyboard, until `n` are answered or none is left;
/// how long it took each time until the next was on the screen. `truth` tells the class of a file. `None` without a browser.
pub(crate) fn answer_questions(
    address: &str,
    n: usize,
    truth: &dyn Fn(&str) -> String,
) -> Option<Vec<std::time::Duration>> {
    let mut browser = Browser::start()?;
    browser.resize(1_280);
    browser.open_address(address);
    let mut taken = Vec::new();
    wait(&mut browser, IS_SHOWN);
    while taken.len() < n {
        // People take longer to look than a model takes to train.
        wait(&mut browser, "!session.is_training");
        let asked = browser.words(ASKED);
        if asked.is_empty() {
            break;
        }
        let class = truth(&asked);
        let choices = browser.value(
            "[...document.querySelectorAll('#choices button')].map((button) =>
               [button.querySelector('bdi').textContent, button.querySelector('kbd').textContent])",
        );
        let named = |choice: &&Value| choice[0] == json!(class) || choice[0] == json!(format!("{class} is right"));
        let start = std::time::Instant::now();
        match choices.as_array().unwrap().iter().find(named) {
            Some(choice) => browser.press(choice[1].as_str().unwrap()),
            None => {
                browser.press("c");
                browser.call("Input.insertText", json!({ "text": class }));
                browser.press("Enter");
            }
        }
        wait(&mut browser, &format!("({ASKED}) !== {} && {IS_SHOWN}", json!(asked)));
        taken.push(start.elapsed());
    }
    check_console(&browser, None);
    Some(taken)
}

/// On the page of `luthier label`, where `n` were answered since the start, takes the last answer back. Then many are
/// confirmed at once, all but one of those that the page shows: how many. Screenshots go to `$LUTHIER_TEST_SCREENSHOTS`.
/// `None` without a browser.
pub(crate) fn undo_and_confirm(address: &str, n: usize) -> Option<usize> {
    let mut browser = Browser::start()?;
    browser.resize(1_280);
    browser.open_address(address);
    wait(&mut browser, IS_SHOWN);
    // What is taken back is on the screen again.
    let before = browser.words(ASKED);
    browser.press("u");
    wait(
        &mut browser,
        "document.getElementById('why').textContent.includes('took back')",
    );
    browser.press("s");
    wait(&mut browser, &format!("({ASKED}) === {}", json!(before)));
    check_widths(&mut browser, "decide");
    check_names(&mut browser, 1);
    browser.click("#many summary");
    let is_loaded = "(document.querySelectorAll('#grid input').length > 0
        ? !document.querySelector('#grid input:disabled') : document.getElementById('confirm').textContent.startsWith('It is'))";
    let n_classes = browser.number("document.getElementById('of').options.length") as usize;
    let checked = "document.querySelectorAll('#grid input:checked').length";
    for place in 0..n_classes {
        browser.value(&format!(
            "(() => {{ const of = document.getElementById('of'); of.selectedIndex = {place};
               document.getElementById('grid').replaceChildren(); document.getElementById('confirm').textContent = '';
               of.dispatchEvent(new Event('change')); return 0; }})()"
        ));
        wait(&mut browser, is_loaded);
        if browser.number(checked) > 1.0 {
            break;
        }
    }
    let n_shown = browser.number(checked) as usize;
    assert!(n_shown > 1, "the model is sure of some");
    check_names(&mut browser, n_shown);
    browser.click("#grid input");
    assert_eq!(browser.number(checked) as usize, n_shown - 1);
    let told = browser.words("document.getElementById('confirm').textContent");
    assert!(told.starts_with(&format!("These {} are ", n_shown - 1)), "{told}");
    browser.click("#confirm");
    wait(
        &mut browser,
        // Many are confirmed by one decision.
        &format!("session.progress.decided === {n}"),
    );
    check_console(&browser, None);
    Some(n_shown - 1)
}

/// The page of copies, of which there are two groups of two: of the first, one file is kept, and all of the second. `None`
/// without a browser.
pub(crate) fn compare_copies(address: &str) -> Option<()> {
    let mut browser = Browser::start()?;
    browser.resize(1_280);
    browser.open_address(address);
    let is_shown = |n: usize| {
        format!(
            "document.querySelectorAll('#pictures img').length === {n}
             && [...document.querySelectorAll('#pictures img')].every((image) => image.complete) && unseen === 0"
        )
    };
    let words = "document.getElementById('why').textContent";
    wait(&mut browser, &is_shown(2));
    let why = browser.words(words);
    assert!(
        why.contains("the classes are") && why.ends_with("at most one is right."),
        "{why}"
    );
    assert_eq!(
        browser.words("document.getElementById('ask').textContent"),
        "Which of these are to stay?"
    );
    let are_of_classes = format!("({words}).includes('at most one') && {}", is_shown(2));
    browser.press("2");
    wait(&mut browser, &format!("!({are_of_classes})"));
    browser.press("u");
    wait(&mut browser, &are_of_classes);
    check_names(&mut browser, 2);
    check_widths(&mut browser, "copies");
    browser.press("2");
    wait(&mut browser, &format!("!({are_of_classes})"));
    // Labels that are probably wrong come before copies in both splits.
    while !browser.words(words).contains("figures come out too good") {
        let file = browser.words("document.querySelector('#pictures bdi').textContent");
        browser.press("s");
        wait(
            &mut browser,
            &format!(
                "document.querySelector('#pictures bdi').textContent !== {}",
                json!(file)
            ),
        );
    }
    wait(&mut browser, &is_shown(2));
    browser.press("Enter");
    wait(
        &mut browser,
        "document.getElementById('item').hidden || session.progress.copies === 0",
    );
    check_console(&browser, None);
    Some(())
}

/// A page that fits the narrowest and the widest screen, in both colours. What it looks like goes to a folder, if asked for.
fn check_widths(browser: &mut Browser, name: &str) {
    for (width, scheme) in [(390, "light"), (1_280, "light"), (390, "dark"), (1_280, "dark")] {
        browser.resize(width);
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        browser.call("Emulation.setEmulatedMedia", json!({ "features": features }));
        let needed = browser.number("document.documentElement.scrollWidth");
        assert!(needed <= f64::from(width), "{needed} of {width} pixels");
        if let Some(folder) = std::env::var_os("LUTHIER_TEST_SCREENSHOTS") {
            let shot = browser.call("Page.captureScreenshot", json!({}));
            let shot = base64::engine::general_purpose::STANDARD.decode(shot["data"].as_str().unwrap());
            let name = format!("{name}-{width}-{scheme}.png");
            std::fs::write(Path::new(&folder).join(name), shot.unwrap()).unwrap();
        }
    }
}

/// Waits until a JavaScript expression is true: for a minute, so that a page that has come to a halt does not hold all up.
fn wait(browser: &mut Browser, condition: &str) {
    let start = std::time::Instant::now();
    while browser.value(condition) != true {
        assert!(start.elapsed().as_secs() < 60, "never: {condition}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// All checks of a report with a mistake in it.
pub(crate) fn check(page: &Path) {
    let Some(mut browser) = Browser::start() else { return };
    browser.resize(1_280);
    browser.open(page);
    check_sorting(&mut browser);
    browser.open(page);
    check_keyboard(&mut browser);
    check_matrix(&mut browser);
    if browser.value("document.getElementById('map') !== null") == true {
        check_map(&mut browser);
    }
    check_names(&mut browser, 20);
    check_looks(&mut browser);
    check_silence(&browser);
    check_without_script(&mut browser, page);
}

/// The table of all pairs of classes, whatever their number, and the page around it.
#[test]
fn thirty_and_a_hundred_classes_fit_their_page() {
    for n_classes in [30, 100] {
        let Some(mut browser) = Browser::start() else { return };
        let project = Project::empty();
        for class in 0..n_classes {
            for n in 0..3 {
                let split = if n < 2 { "train" } else { "test" };
                let file = format!("data/{split}/an instrument of kind {class:03}/{n}.bmp");
                project.write(&file, &bitmap(class % 3, 7 * class + n));
            }
        }
        project.pipeline(&["--size", "64", "--c", "1", "--batch", "8"]);
        browser.resize(1_280);
        browser.open(&project.path("reports/report.html"));
        let table = "document.querySelector('.matrix').parentElement";
        let (needed, room) = (format!("{table}.scrollWidth"), format!("{table}.clientWidth"));
        let (needed, room) = (browser.number(&needed), browser.number(&room));
        assert!(needed <= room, "{n_classes} classes: {needed} of {room} pixels");
        let side = browser.number("document.querySelector('.matrix td:nth-child(2)').getBoundingClientRect().width");
        assert!(side >= 5.0, "{n_classes} classes: {side} pixels");
        if let Some(folder) = std::env::var_os("LUTHIER_TEST_SCREENSHOTS") {
            browser.value("document.querySelector('.matrix').scrollIntoView(), 0");
            let shot = browser.call("Page.captureScreenshot", json!({}));
            let shot = base64::engine::general_purpose::STANDARD.decode(shot["data"].as_str().unwrap());
            std::fs::write(
                Path::new(&folder).join(format!("matrix-{n_classes}.png")),
                shot.unwrap(),
            )
            .unwrap();
        }
    }
}

#[test]
fn the_demos_report_can_be_used_by_mouse_and_keyboard() {
    let project = Project::empty();
    let drawings = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/instruments"));
    let [train, test] = ["train", "test"].map(|split| drawings.join(split).display().to_string());
    project
        .run(&["pipeline", "--train-dir", &train, "--test-dir", &test])
        .ok();
    check(&project.path("reports/report.html"));
}
