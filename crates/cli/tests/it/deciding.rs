//! `luthier label` and `luthier review`, as browsers and programs use them.

use std::time::Duration;

use luthier_artifact::Digest;
use luthier_testing::Need;
use serde_json::{Value, json};

use crate::serve::Served;
use crate::{FOLDERS, Project, browser, photo};

/// A folder of the demo's drawings.
fn drawings() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/instruments/train").to_owned()
}

fn start(project: &Project, command: &str, arguments: &[&str]) -> Served {
    let all = [&["--weights", "untrained"], arguments].concat();
    Served::start_command(project, command, &all)
}

/// The session, once no model is on its way.
fn session(served: &Served) -> Value {
    loop {
        let session = served.get("/v1/session").json();
        if session["is_training"] == json!(false) {
            return session;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn decide(served: &Served, item: &Value, answer: &Value) -> crate::serve::Answer {
    decide_all(served, std::slice::from_ref(item), answer)
}

fn decide_all(served: &Served, items: &[Value], answer: &Value) -> crate::serve::Answer {
    // Copies have places among the files of an image.
    let are_copies = items.iter().all(|item| item["place"].is_u64());
    let versioned = |item: &Value| json!({ "image": item["image"], "version": item["version"] });
    let images: Vec<Value> = items.iter().map(versioned).collect();
    let body = json!({ "images": images, "are_copies": are_copies, "answer": answer });
    let headers = [("content-type", "application/json")];
    served.post("/v1/decide", &headers, body.to_string().as_bytes())
}

/// The class of a drawing: its folder.
fn class_of(file: &str) -> String {
    file.split('/').next().unwrap().to_owned()
}

#[test]
fn what_was_decided_is_kept_when_the_process_is_killed_and_trains_a_model() {
    let project = Project::empty();
    let folder = drawings();
    let served = start(&project, "label", &[&folder]);
    let mut n = 0;
    while n < 24 {
        for item in session(&served)["items"].as_array().unwrap().iter().take(10) {
            let class = class_of(item["file"].as_str().unwrap());
            let answer = decide(&served, item, &json!({ "class": class }));
            assert_eq!(answer.status, 200, "{answer:?}");
            n += 1;
        }
    }
    let last = session(&served)["items"][0].clone();
    assert_eq!(decide(&served, &last, &json!("exclude")).status, 200);
    served.kill();

    let served = start(&project, "label", &[&folder]);
    let found = session(&served);
    assert_eq!(found["progress"]["labelled"], json!(n));
    let left_out = |item: &Value| item["image"] == last["image"];
    assert!(!found["items"].as_array().unwrap().iter().any(left_out));
    served.end();
    let table = project.read("decisions.csv");
    assert_eq!(table.lines().count(), n + 1, "{table}");
    let run = [
        "pipeline",
        "--data-dir",
        &folder,
        "--labels",
        "decisions.csv",
        "--weights",
        "untrained",
    ];
    project.run(&[&run[..], &["--test-fraction", "0"]].concat()).ok();
}

#[test]
fn two_windows_do_not_contradict_each_other_and_strangers_are_refused() {
    let project = Project::empty();
    // Whoever wants quiet needs the address all the same.
    let served = start(&project, "label", &["--quiet", &drawings()]);
    let item = session(&served)["items"][0].clone();
    assert_eq!(decide(&served, &item, &json!({ "class": "bell" })).status, 200);
    let second = decide(&served, &item, &json!({ "class": "drum" }));
    let expected = format!(
        "{}: decided about meanwhile, in another window",
        item["file"].as_str().unwrap()
    );
    assert_eq!(
        (second.status, second.json()["error"].as_str()),
        (409, Some(expected.as_str()))
    );
    for (answer, status) in [
        (json!({ "class": " " }), 422),
        (json!({ "class": "a/b" }), 422),
        (json!("maybe"), 422),
    ] {
        let other = session(&served)["items"][0].clone();
        assert_eq!(decide(&served, &other, &answer).status, status, "{answer}");
    }
    // As another page in the same browser can send it unasked.
    let body = json!({ "images": [], "are_copies": false, "answer": "exclude" }).to_string();
    let plain = served.post("/v1/decide", &[("content-type", "text/plain")], body.as_bytes());
    assert_eq!(plain.status, 415);
    // As another user of this machine, a page from elsewhere, and the page of a process that has ended: none has the token.
    for path in ["/", "/v1/session", "/00000000000000000000000000000000/v1/session"] {
        let request = format!(
            "GET {path} HTTP/1.1\r\nconnection: close\r\nhost: {}\r\n\r\n",
            served.address
        );
        let answer = served.send(request.as_bytes()).unwrap();
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(
            answer.status == 404 && error.contains("that Luthier printed"),
            "{path}: {answer:?}"
        );
    }
    let json = [("content-type", "application/json")];
    let undo = json!({ "decided": 1 }).to_string();
    assert_eq!(project.read("decisions.jsonl").lines().count(), 1);
    assert_eq!(served.post("/v1/undo", &json, undo.as_bytes()).status, 200);
    assert_eq!(project.read("decisions.jsonl").lines().count(), 2);
    served.end();
}

#[test]
fn a_page_that_others_could_reach_is_refused() {
    let project = Project::empty();
    let ran = project.run(&["label", &drawings(), "--weights", "untrained", "--listen", "0.0.0.0:0"]);
    let (_, message) = ran.error();
    assert!(
        message.contains("0.0.0.0:0: expected an address of this machine alone"),
        "{message}"
    );
}

#[test]
fn a_wrong_label_comes_first_and_what_was_called_right_never_again() {
    let Some(weights) = Need::Weights.path() else { return };
    let weights = weights.display().to_string();
    let project = Project::empty().at_full_size();
    let folder = drawings();
    // One drawing of each class is called something else.
    let mut table = "file,label\n".to_owned();
    let mut swapped = Vec::new();
    let mut classes: Vec<String> = Vec::new();
    for path in luthier_extract::images_below(folder.as_ref()).unwrap() {
        let file = path.strip_prefix(&folder).unwrap().display().to_string();
        let class = class_of(&file);
        if !classes.contains(&class) && classes.len() < 5 {
            classes.push(class.clone());
            table += &format!("{file},{}\n", if class == "bell" { "drum" } else { "bell" });
            swapped.push(file);
        } else {
            table += &format!("{file},{class}\n");
        }
    }
    project.write("labels.csv", table.as_bytes());
    let arguments = ["--data-dir", &folder, "--labels", "labels.csv", "--weights", &weights];
    let served = Served::start_command(&project, "review", &arguments);
    let mut n_found = 0;
    let mut right = Vec::new();
    for item in session(&served)["items"].as_array().unwrap().iter() {
        let file = item["file"].as_str().unwrap();
        let answer = match swapped.iter().any(|wrong| wrong == file) {
            true => {
                n_found += 1;
                json!({ "class": class_of(file) })
            }
            false => {
                right.push(item["image"].clone());
                json!("right")
            }
        };
        assert_eq!(decide(&served, item, &answer).status, 200);
    }
    assert!(n_found >= 3, "{n_found} of {} among the first 20", swapped.len());
    let later = session(&served);
    assert!(
        later["items"]
            .as_array()
            .unwrap()
            .iter()
            .all(|item| !right.contains(&item["image"]))
    );
    served.end();
    let served = Served::start_command(&project, "review", &arguments);
    let again = session(&served);
    assert_eq!(again["progress"]["checked"], json!(20));
    assert!(
        again["items"]
            .as_array()
            .unwrap()
            .iter()
            .all(|item| !right.contains(&item["image"]))
    );
    served.end();
}

/// A harp that is among the drums once more, and a drum of the test that looks like one of the training.
fn with_copies() -> Project {
    let project = Project::new();
    project.write("data/train/drum/9.jpg", &photo(2, 0));
    let look_alike = [photo(0, 0), b"copy".to_vec()].concat();
    project.write("data/test/drum/9.jpg", &look_alike);
    project
}

#[test]
fn of_copies_one_is_kept_and_the_pipeline_knows() {
    let project = with_copies();
    let served = start(&project, "review", &FOLDERS);
    let copies = |found: &Value| -> Vec<Value> {
        let items = found["items"].as_array().unwrap().iter();
        let groups = items.map(|item| item["copies"].clone());
        groups.filter(|copies| copies.as_array().unwrap().len() > 1).collect()
    };
    let found = session(&served);
    let groups = copies(&found);
    assert_eq!(
        (found["progress"]["copies"].as_u64(), groups.len()),
        (Some(2), 2),
        "{found}"
    );
    let files = |group: &Value| -> Vec<String> {
        let files = group.as_array().unwrap().iter();
        files
            .map(|copy| format!("{} {}", copy["file"].as_str().unwrap(), copy["class"].as_str().unwrap()))
            .collect()
    };
    // Classes that contradict each other come before images that are in both splits.
    assert_eq!(files(&groups[0]), ["train/drum/9.jpg drum", "train/harp/0.jpg harp"]);
    assert_eq!(files(&groups[1]), ["train/drum/0.jpg drum", "test/drum/9.jpg drum"]);

    let harp = groups[0][1].clone();
    let keep = json!({ "keep": { "image": harp["image"], "place": harp["place"] } });
    assert_eq!(decide_all(&served, std::slice::from_ref(&harp), &keep).status, 200);
    let second = decide_all(&served, &[harp], &keep);
    assert_eq!(second.status, 409, "{second:?}");
    let both = groups[1].as_array().unwrap();
    assert_eq!(decide_all(&served, both, &json!("right")).status, 200);
    assert_eq!(copies(&session(&served)), Vec::<Value>::new());
    served.end();
    let lines = project.read("decisions.jsonl");
    assert!(
        lines.contains(r#""file":"train/drum/9.jpg","verdict":"exclude""#),
        "{lines}"
    );

    let served = start(&project, "review", &FOLDERS);
    assert_eq!(copies(&session(&served)), Vec::<Value>::new());
    served.end();
    assert_eq!(project.pipeline(&[])["images"]["total"], 19);
    let page = project.read("reports/report.html");
    assert!(!page.contains("The same images in two classes"));
}

#[test]
fn copies_are_compared_by_keyboard() {
    let project = with_copies();
    let served = start(&project, "review", &FOLDERS);
    session(&served);
    if browser::compare_copies(&served.url()).is_none() {
        return;
    }
    served.end();
    let lines = project.read("decisions.jsonl");
    let verdicts = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["verdict"].clone());
    let expected = ["exclude", "undo", "exclude", "right", "right"];
    assert_eq!(verdicts.collect::<Vec<_>>(), expected.map(|verdict| json!(verdict)));
}

/// Without classes to begin with, 150 answers by keyboard label the other photographs, whichever there are.
#[test]
fn questions_are_answered_by_keyboard() {
    let (Some(weights), Some(data)) = (Need::Weights.path(), Need::Photographs.path()) else {
        return;
    };
    let photographs = data.join("music10").display().to_string();
    let mut files: Vec<String> = (luthier_extract::images_below(photographs.as_ref()).unwrap().iter())
        .map(|path| path.strip_prefix(&photographs).unwrap().display().to_string())
        .collect();
    let weights = ["--weights", &weights.display().to_string(), "--precision", "auto"].map(str::to_owned);
    let project = Project::empty().at_full_size();
    let mut accuracies = Vec::new();
    for seed in 0..3 {
        // A hundred photographs are not there.
        files.sort_by_key(|file| Digest::of(format!("{seed} {file}").as_bytes()));
        let (absent, present) = files.split_at(100);
        let decisions = format!("decisions-{seed}.jsonl");
        let absent = absent.iter().flat_map(|file| ["--exclude", file]);
        let arguments: Vec<&str> = [&photographs, "--decisions", &decisions]
            .into_iter()
            .chain(weights.iter().map(String::as_str))
            .chain(absent)
            .collect();
        let served = Served::start_command(&project, "label", &arguments);
        session(&served);
        let address = served.url();
        let Some(mut taken) = browser::answer_questions(&address, 150, &|file| class_of(file)) else {
            return;
        };
        taken.sort();
        println!(
            "from key to the next photograph: median {:?}, slowest {:?}",
            taken[75], taken[149]
        );
        assert_eq!(session(&served)["progress"]["labelled"], json!(150));
        served.end();

        let lines = |name: &str| -> Vec<Vec<String>> {
            let table = project.read(name);
            let lines = table.lines().skip(1);
            lines.map(|line| line.split(',').map(str::to_owned).collect()).collect()
        };
        let labels = lines(&format!("decisions-{seed}.csv"));
        assert!(labels.iter().all(|line| line[1] == class_of(&line[0])));
        let predictions = lines(&format!("decisions-{seed}.predictions.csv"));
        assert_eq!(labels.len() + predictions.len(), present.len());
        let n_right = (predictions.iter())
            .filter(|line| line[1] == class_of(&line[0]))
            .count();
        accuracies.push(n_right as f64 / predictions.len() as f64);
    }
    let mean = accuracies.iter().sum::<f64>() / accuracies.len() as f64;
    println!("accuracy on the others: {accuracies:.4?}, on average {mean:.4}");
    assert!(mean >= 0.91, "{accuracies:?}");

    // The next start goes on where the last has ended.
    let arguments: Vec<&str> = [&photographs, "--decisions", "decisions-2.jsonl"]
        .into_iter()
        .chain(weights.iter().map(String::as_str))
        .collect();
    let served = Served::start_command(&project, "label", &arguments);
    let address = served.url();
    assert_eq!(session(&served)["progress"]["labelled"], json!(150));
    browser::answer_questions(&address, 1, &|file| class_of(file));
    let n_confirmed = browser::undo_and_confirm(&address, 1).expect("there is a browser");
    assert_eq!(session(&served)["progress"]["labelled"], json!(150 + n_confirmed));
    served.end();
}
