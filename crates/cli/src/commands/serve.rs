use crate::ExitCode;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use bytesize::ByteSize;
use clap::Args;
use luthier::{MODEL_FILE, PredictorConfig};
use luthier_serve::{Access, ServeConfig, serve};

use super::predict::{percentage, probability};
use super::weights_store;
use crate::problem::Problem;
use crate::settings::{LimitSettings, NetworkSettings, Settings, positive};
use crate::terminal::{self, Progress};

/// Answer over HTTP: a page for people, and a service for programs
///
/// The page takes photographs that are dropped, pasted, chosen or taken. Programs post an image to /v1/predict;
/// /openapi.json describes the service. The images of all clients share the lanes of the network. When the model file is
/// replaced, the new model answers. Ctrl-C or SIGTERM ends the service when all that it has accepted is answered.
#[derive(Args)]
#[command(after_help = "Examples:
  luthier serve
  luthier serve --model-path models/model.safetensors --listen 0.0.0.0:8080 --keep-known 95
  luthier serve --feature-dir features             shows the nearest training images
  curl --data-binary @harp.jpg http://127.0.0.1:8080/v1/predict")]
pub(crate) struct Arguments {
    /// Model that `luthier train` or `luthier pipeline` wrote
    #[arg(long, value_name = "FILE", default_value_os_t = Path::new("models").join(MODEL_FILE), alias = "model_path", env = "LUTHIER_MODEL_PATH")]
    model_path: PathBuf,
    /// Folder of the features that it was trained on: answers then show the nearest training images
    ///
    /// Whoever can use the service can see small pictures of the training images.
    #[arg(long, value_name = "DIR", alias = "feature_dir")]
    feature_dir: Option<PathBuf>,
    /// Address and port; port 0 takes any that is free
    ///
    /// The default can be reached from this machine only. 0.0.0.0:8080 can be reached from everywhere.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080",
        env = "LUTHIER_LISTEN"
    )]
    listen: SocketAddr,
    /// What requests must bear as `Authorization: Bearer TOKEN`
    ///
    /// The page then is at http://ADDRESS/#TOKEN. The environment hides the token from other users of this machine.
    #[arg(long, value_name = "TOKEN", env = "LUTHIER_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Answer `unknown` if no class has at least this probability
    #[arg(long, value_name = "P", value_parser = probability, allow_negative_numbers = true, alias = "min_confidence")]
    min_confidence: Option<f64>,
    /// Answer `unknown` to images that are less like a class than this percentage of known images: 90, 95 or 99
    #[arg(long, value_name = "PERCENT", value_parser = percentage, allow_negative_numbers = true, alias = "keep_known")]
    keep_known: Option<f64>,
    /// How many images may wait; beyond it the answer is 503, with the wish to come again
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = positive)]
    queue: usize,
    /// The largest body of a request
    #[arg(long, value_name = "SIZE", default_value = "64MiB", alias = "max_body")]
    max_body: ByteSize,
    /// How many seconds a body may take to arrive
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = positive, alias = "body_timeout")]
    body_timeout: usize,
    #[command(flatten)]
    limits: LimitSettings,
    #[command(flatten)]
    network: NetworkSettings,
}

/// A token that both a header and the address of the page can carry. A newline at the end belongs to the file that it
/// comes from. Clap would print what it refuses, and a token is a secret.
fn visible_ascii(text: &str) -> Result<String> {
    let token = text.trim_end_matches(['\r', '\n']);
    let is_carried = |byte: u8| byte.is_ascii_graphic() && byte != b'%';
    match !token.is_empty() && token.bytes().all(is_carried) {
        true => Ok(token.to_owned()),
        false => bail!(
            Problem::usage("--token: expected visible characters of ASCII, without blanks and %")
                .hint("the environment has it as LUTHIER_TOKEN, if it is not typed")
        ),
    }
}

/// How many connections there may be at once: fewer than the files that a process may usually have open.
const CONNECTIONS: usize = 768;

pub(crate) fn run(arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    let Arguments {
        model_path,
        feature_dir,
        listen,
        token,
        min_confidence,
        keep_known,
        queue,
        max_body,
        body_timeout,
        limits,
        network,
    } = arguments;
    let token = token.as_deref().map(visible_ascii).transpose()?;
    let settings = Settings {
        network,
        ..Settings::default()
    };
    if !listen.ip().is_loopback() && token.is_none() {
        progress.say(&format!(
            "warning: whoever can reach {listen} can use the service: --token asks for a token"
        ));
    }
    let log = |access: &Access| {
        let line = serde_json::to_string(access).expect("words and numbers always serialize");
        terminal::message(&line);
    };
    let config = ServeConfig {
        model: model_path,
        features: feature_dir,
        listen,
        token,
        queue,
        connections: CONNECTIONS,
        max_body: max_body.as_u64() as usize,
        body_timeout: Duration::from_secs(body_timeout as u64),
        predictor: PredictorConfig {
            limits: limits.limits(),
            min_confidence,
            keep_known,
            ..settings.predictor_config()?
        },
        on_access: progress.is_verbose().then(|| Box::new(log) as _),
    };
    serve(config, &weights_store()?, progress, |address| {
        progress.say(&format!("serving at http://{address} (Ctrl-C ends)"));
    })?;
    Ok(ExitCode::SUCCESS)
}
