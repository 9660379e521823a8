//! `nexus init`: a pipeline to begin with, of one's own rows or of sample data.

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use super::{Failure, terminal};
use crate::pipeline::{BuildError, Pipeline};
use crate::spec::{self, Loaded, slug};
use crate::{Error, Result, trial};

mod draft;
mod sample;

use draft::Draft;
use sample::Sample;

/// Write a pipeline to begin with, that passes `nexus check` and `nexus test`.
///
/// Nothing that is there is overwritten. Asks on a terminal if none of its options is given.
#[derive(Debug, clap::Args)]
pub struct Init {
    /// The folder to write into, or the file to write, such as orders.yaml; the folder is made if it is not there.
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// Where rows come from; `file` if not given.
    #[arg(long, value_enum)]
    source: Option<Kind>,
    /// Take the columns from this file (CSV, JSON or Parquet, perhaps gzip or zstd); sample orders if not given.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// The pipeline's name; that of the file if not given.
    #[arg(long)]
    name: Option<String>,
    /// Also write the last table into PostgreSQL, whose URL is in DATABASE_URL.
    #[arg(long)]
    postgres: bool,
}

/// Where rows come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Files on this machine.
    File,
    /// Objects on S3, announced by an SQS queue.
    S3,
    /// A Kinesis stream.
    Kinesis,
}

impl Init {
    pub async fn execute(mut self) -> Result<(), Failure> {
        let asked = self.source.is_some() || self.from.is_some() || self.name.is_some() || self.postgres;
        self.take_file_name()?;
        if !asked && std::io::stdin().is_terminal() && std::io::stderr().is_terminal() {
            self.ask()?;
        }
        let kind = self.source.unwrap_or(Kind::File);
        let name = self.name()?;
        let sample = match &self.from {
            Some(path) => Sample::of_file(path).await?,
            None => Sample::of_orders(kind).await?,
        };
        let folder = absolute(&self.folder)?;
        let data = match (&self.from, kind) {
            (None, Kind::File) => Some(folder.join("data/orders.csv")),
            _ => None,
        };
        let reads = data.clone().or(self.from.as_deref().map(absolute).transpose()?);
        let path = reads.map(|path| relative(&path, &folder)).unwrap_or_default();
        let pipeline = self.folder.join(format!("{name}.yaml"));
        if pipeline.exists() {
            return Err(Error::config(format!("could not write {}: it is there already", pipeline.display())).into());
        }
        let draft = Draft { name: &name, kind, path, postgres: self.postgres, sample: &sample };
        let text = proven(&draft, &folder, data.as_deref()).await?;
        write_new(&pipeline, &text)?;
        terminal::say(&format!(
            "{} is written. It passes its tests. Next:\n\n{}",
            pipeline.display(),
            next(kind, &pipeline)
        ));
        Ok(())
    }

    /// Asks for what the options would say.
    fn ask(&mut self) -> Result<()> {
        self.source = Some(match question("Where do rows come from: file, s3 or kinesis?", "file")?.as_str() {
            "s3" => Kind::S3,
            "kinesis" => Kind::Kinesis,
            "file" => Kind::File,
            other => return Err(Error::config(format!("`{other}` is none of file, s3 and kinesis"))),
        });
        let from = question("A CSV, JSON or Parquet file to take the columns from?", "sample orders")?;
        self.from = (from != "sample orders").then(|| PathBuf::from(from));
        self.name = Some(question("The name of the pipeline?", &self.name()?)?);
        self.postgres = question("Also into PostgreSQL: y or n?", "n")?.starts_with(['y', 'Y']);
        Ok(())
    }

    /// Takes the name of a file apart: its folder, and the pipeline's name.
    fn take_file_name(&mut self) -> Result<()> {
        if self.folder.extension().is_none_or(|ending| ending != "yaml") || self.folder.is_dir() {
            return Ok(());
        }
        let stem = self.folder.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if self.name.get_or_insert_with(|| stem.clone()) != &stem || slug(&stem, "") != stem {
            let file = self.folder.display();
            let text = "a pipeline's file bears its name: lower-case letters, digits and `_`, as `--name` if given";
            return Err(Error::config(format!("could not write {file}: {text}")));
        }
        self.folder.pop();
        if self.folder.as_os_str().is_empty() {
            self.folder = PathBuf::from(".");
        }
        Ok(())
    }

    fn name(&self) -> Result<String> {
        let stem = self.from.as_ref().and_then(|path| path.file_name()?.to_str()?.split('.').next());
        let wanted = self.name.as_deref().or(stem).unwrap_or("orders");
        let name = slug(wanted, "");
        if name.is_empty() {
            return Err(Error::config(format!("`{wanted}` has no letter to make a name of; give one with `--name`")));
        }
        Ok(name)
    }
}

/// Gives the text of a pipeline file that has been planned and tested; a case that its rows do not pass is left out.
/// Writes the sample data that it reads.
async fn proven(draft: &Draft<'_>, folder: &Path, data: Option<&Path>) -> Result<String, Failure> {
    if let Some(data) = data {
        write_new(data, sample::ORDERS_CSV)?;
    }
    let read = |text: &str| spec::parse(text, &format!("{}.yaml", draft.name), folder, &[]);
    let mut with_rows = true;
    loop {
        let text = draft.text(with_rows);
        let loaded = read(&text)?;
        Pipeline::new(loaded.clone()).plan().await?;
        if passes(&loaded).await? || !with_rows {
            return Ok(text);
        }
        with_rows = false;
    }
}

async fn passes(loaded: &Loaded) -> Result<bool, Failure> {
    for (number, case) in loaded.spec.tests.iter().enumerate() {
        match trial::run(loaded, number, case).await {
            Ok(differences) if differences.is_empty() => {}
            Err(BuildError::File(wrong)) => return Err(Failure::File(wrong)),
            Ok(_) | Err(BuildError::Operator(_)) => return Ok(false),
        }
    }
    Ok(true)
}

fn next(kind: Kind, pipeline: &Path) -> String {
    let file = pipeline.display();
    let run = match kind {
        Kind::File => format!("nexus run {file}"),
        Kind::S3 => format!("nexus run {file} --set queue=https://sqs... --set landing=s3://..."),
        Kind::Kinesis => format!("nexus run {file} --set stream=..."),
    };
    format!("    nexus check {file}\n    nexus test {file}\n    {run}\n    nexus query {file}")
}

fn question(text: &str, default: &str) -> Result<String> {
    let mut out = std::io::stderr().lock();
    write!(out, "{text} [{default}] ").and_then(|()| out.flush())?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let answer = line.trim();
    Ok(if answer.is_empty() { default.to_owned() } else { answer.to_owned() })
}

/// Writes a file that is not there yet, and the folder that it lies in.
fn write_new(path: &Path, text: &str) -> Result<()> {
    let failed = |e: std::io::Error| Error::config(format!("could not write {}", path.display())).because(e);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::config(format!("could not find {}", path.display())).because(e))
}

/// Writes a path as the pipeline file names it: from its folder, if it lies in there.
fn relative(path: &Path, folder: &Path) -> String {
    path.strip_prefix(folder).unwrap_or(path).display().to_string()
}
