//! `swell validate`: checks a pipeline file without a server.

use std::{
    fs,
    io::{self, Read as _},
    path::PathBuf,
};

use serde_json::json;

use crate::{
    context::Context,
    failure::{Exit, Failure, Result, file_error},
    human,
    output::Tone,
};
use swell_model::pipeline_file::{Diagnostic, FILE_BYTES_MAX, PipelineFile};

/// `swell validate [FILE]`
#[derive(Debug, clap::Args)]
pub struct ValidateArgs {
    /// Pipeline file to check; `-` reads standard input
    #[arg(default_value = "swell.toml")]
    pub file: PathBuf,
    /// Also refuse settings that this version does not support yet
    #[arg(long)]
    pub strict: bool,
}

/// Runs `swell validate`. Exit code 2 if the file is invalid.
pub fn run(context: &Context, args: ValidateArgs) -> Result<Exit> {
    let name = args.file.display().to_string();
    let text = read(&args)?;
    let (problems, warnings) = match PipelineFile::parse(&text) {
        Ok(file) => (Vec::new(), file.unsupported()),
        Err(problems) => (problems, Vec::new()),
    };
    let is_valid = problems.is_empty() && (!args.strict || warnings.is_empty());
    let value = json!({ "file": name, "valid": is_valid, "problems": problems, "warnings": warnings });
    context.output.result(&value, || {
        let mut out = String::new();
        for problem in &problems {
            out += &shown(context, problem, &name, &text, Tone::Bad, "error");
        }
        for warning in &warnings {
            out += &shown(context, warning, &name, &text, Tone::Notice, "warning");
        }
        match (problems.len() as u64, warnings.len() as u64) {
            (0, 0) => out + &format!("{name} is valid\n"),
            (0, some) if args.strict => out + &format!("{name}: {}\n", human::count(some, "unsupported setting")),
            (0, some) => out + &format!("{name} is valid; this version ignores {}\n", human::count(some, "setting")),
            (some, _) => out + &format!("{name}: {}\n", human::count(some, "problem")),
        }
    })?;
    Ok(if is_valid { Exit::Done } else { Exit::Usage })
}

fn read(args: &ValidateArgs) -> Result<String> {
    let mut bytes = Vec::new();
    if args.file.as_os_str() == "-" {
        io::stdin().lock().take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    } else {
        let file = fs::File::open(&args.file);
        let read = file.and_then(|file| file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes));
        read.map_err(|error| file_error("read", &args.file, &error).hint("name another file, or create one with `swell init`"))?;
    }
    if bytes.len() > FILE_BYTES_MAX {
        return Err(Failure::usage(format!("`{}` exceeds {FILE_BYTES_MAX} bytes", args.file.display())));
    }
    String::from_utf8(bytes).map_err(|_| Failure::usage(format!("`{}` is not UTF-8", args.file.display())))
}

fn shown(context: &Context, found: &Diagnostic, name: &str, text: &str, tone: Tone, kind: &str) -> String {
    let rendered = found.render(name, text);
    let rest = rendered.strip_prefix("error").unwrap_or(&rendered);
    format!("{}{rest}\n", context.output.paint(tone, kind))
}
