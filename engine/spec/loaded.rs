//! A pipeline file that has been read and checked: the model, resolved paths,
//! and the way back to the place where something was written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nexus_operators::aws::{AwsSettings, Role, Service};
use nexus_operators::secret::SecretRef;
use nexus_operators::store::{Access, Encryption, Store};

use super::check;
use super::codes;
use super::diagnostic::{Diagnostic, Diagnostics, Severity};
use super::model::{self, AssumedRole, Given, KinesisSource, Lake, PostgresAuth, PostgresSink, Roles, Secret, Spec};
use super::params::Params;
use super::query::Query;
use super::source::{Extent, SourceText, offset_of, read_text, word_width};
use super::tier::Tier;
use super::validate;
use super::yaml::{self, Node};

/// The longest name of a consumer that Kinesis takes.
const CONSUMER_CHARS_MAX: usize = 128;

/// The longest name of a session that the Security Token Service takes.
const SESSION_CHARS_MAX: usize = 64;

/// A pipeline file that has been read and checked.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What the file says.
    pub spec: Spec,
    /// The file's folder, absolute.
    pub folder: PathBuf,
    /// What is probably not meant.
    pub warnings: Diagnostics,
    /// Where relative paths of `--set` begin, absolute.
    current_folder: PathBuf,
    source: SourceText,
    /// The file with parameters put in, which knows where everything stands.
    root: Node,
    /// The queries that lie in files of their own, by tier and table.
    query_files: BTreeMap<(Tier, String), Query>,
}

/// Reads and checks a pipeline file; gives everything that is wrong with it at once.
pub fn load(path: &Path, overrides: &[(String, String)]) -> Result<Loaded, Diagnostics> {
    into_loaded(survey_file(path, overrides))
}

/// Looks at a pipeline file, and goes as far as what is wrong with it allows.
pub(crate) fn survey_file(path: &Path, overrides: &[(String, String)]) -> Survey {
    let file = path.display().to_string();
    let text = match read_text(path, yaml::FILE_BYTES_MAX) {
        Ok(text) => text,
        Err(why) => {
            let message = format!("could not read the pipeline file: {why}");
            return Survey::of_error(Diagnostic::error(codes::UNREADABLE, file, message));
        }
    };
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    survey(&text, &file, folder, overrides)
}

/// What can be said of a pipeline file, also if it is wrong.
pub(crate) struct Survey {
    /// The parts of the file that fit the model; nothing if what is wrong leaves nothing to go on with.
    pub(crate) sound: Option<Loaded>,
    /// Everything that was found.
    pub(crate) found: Vec<Diagnostic>,
    /// Where something is wrong.
    pub(crate) wrong: Vec<Vec<String>>,
}

impl Survey {
    fn of_error(found: Diagnostic) -> Self {
        Self { sound: None, found: vec![found], wrong: Vec::new() }
    }
}

/// Checks the text of a pipeline file that lies, or would lie, in `folder`. `file` is its name in diagnostics.
pub fn parse(text: &str, file: &str, folder: &Path, overrides: &[(String, String)]) -> Result<Loaded, Diagnostics> {
    into_loaded(survey(text, file, folder, overrides))
}

fn into_loaded(survey: Survey) -> Result<Loaded, Diagnostics> {
    let failed = survey.found.iter().any(|d| d.severity == Severity::Error);
    match survey.sound.filter(|_| !failed) {
        Some(loaded) => Ok(Loaded { warnings: Diagnostics::new(survey.found), ..loaded }),
        None => Err(Diagnostics::new(survey.found)),
    }
}

/// Looks at the text of a pipeline file, and goes as far as what is wrong with it allows.
pub(crate) fn survey(text: &str, file: &str, folder: &Path, overrides: &[(String, String)]) -> Survey {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let source = SourceText::new(file, text);
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|e| {
            let message = format!("could not find the folder {}: {e}", path.display());
            Diagnostic::error(codes::UNREADABLE, file, message)
        })
    };
    let (folder, current_folder) = match (absolute(folder), absolute(Path::new("."))) {
        (Ok(folder), Ok(current_folder)) => (folder, current_folder),
        (Err(wrong), _) | (_, Err(wrong)) => return Survey::of_error(wrong),
    };
    let mut root = match yaml::parse(text, &source) {
        Ok(root) => root,
        Err(wrong) => return Survey::of_error(wrong),
    };
    let mut found = Vec::new();
    let mut params = Params::read(&root, &source, overrides, &mut found);
    params.substitute(&mut root, &source, &mut found);
    let validated = validate::validate(&root, &source);
    let spec = validated.value.and_then(|value| serde_json::from_value::<Spec>(value).ok());
    let (mut places, wrong): (Vec<_>, Vec<_>) = validated.wrong.into_iter().unzip();
    // When the outermost shape is wrong, what is missing in it would only be reported again.
    let outermost = places.iter().zip(&wrong).any(|(path, d)| path.len() < 2 && !misspelt(d));
    found.extend(wrong);
    let Some(spec) = spec.filter(|_| !outermost) else {
        if found.is_empty() {
            let message = "the file follows the schema and does not fit the model; this is a bug in Nexus";
            found.push(Diagnostic::error(codes::WRONG_TYPE, file, message));
        }
        return Survey { sound: None, found, wrong: places };
    };
    let warnings = Diagnostics::default();
    let mut loaded = Loaded { spec, folder, warnings, current_folder, source, root, query_files: BTreeMap::new() };
    loaded.read_queries(&mut params, &mut found);
    let meant = check::check(&loaded).into_iter().filter(|(path, _)| loaded.is_sound(path, &places));
    let meant: Vec<_> = meant.collect();
    places.extend(meant.iter().filter(|(_, d)| d.severity == Severity::Error).map(|(path, _)| path.clone()));
    found.extend(meant.into_iter().map(|(_, diagnostic)| diagnostic));
    // A parameter whose name is misspelt where it is used would be reported twice.
    if !found.iter().any(|d| matches!(d.code, codes::UNKNOWN_PARAM | codes::BAD_SUBSTITUTION)) {
        found.extend(params.unused(&loaded.source));
    }
    Survey { sound: Some(loaded), found, wrong: places }
}

impl Loaded {
    /// Gives the file's name, as the user wrote it.
    pub fn file(&self) -> &str {
        self.source.file()
    }

    /// Makes an error at what stands under `path`, such as `["gold", "hourly", "sql"]`; an item of a list is
    /// addressed by its number. What is not there is reported at what would hold it.
    pub fn diagnostic_at(
        &self,
        path: &[&str],
        code: &'static str,
        message: impl Into<String>,
        hint: Option<String>,
    ) -> Diagnostic {
        let place = self.place(path);
        let error = Diagnostic::error(code, self.file(), message).at(place, self.source.line(place.line));
        Diagnostic { hint, ..error }
    }

    /// Makes an error at a line and column (from 1, in characters) of the text under `path`, such as a condition.
    pub fn diagnostic_in_text(
        &self,
        path: &[&str],
        (line, column): (usize, usize),
        code: &'static str,
        message: impl Into<String>,
        hint: Option<String>,
    ) -> Diagnostic {
        let Some(scalar) = self.node(path).and_then(Node::scalar) else {
            return self.diagnostic_at(path, code, message, hint);
        };
        let offset = offset_of(&scalar.text, line, column);
        let place = Extent { width: word_width(&scalar.text, offset), ..scalar.place_of(&self.source, offset) };
        let error = Diagnostic::error(code, self.file(), message).at(place, self.source.line(place.line));
        Diagnostic { hint, ..error }
    }

    /// Makes an error at a line and column (from 1, in characters) of a table's query, also if it lies in a file.
    pub fn diagnostic_in_query(
        &self,
        (tier, table): (Tier, &str),
        (line, column): (usize, usize),
        code: &'static str,
        message: impl Into<String>,
        hint: Option<String>,
    ) -> Diagnostic {
        match self.query_files.get(&(tier, table.to_owned())) {
            Some(query) => {
                let offset = offset_of(query.text(), line, column);
                Diagnostic { hint, ..query.diagnostic(offset, code, message.into()) }
            }
            None => self.diagnostic_in_text(&[tier.name(), table, "sql"], (line, column), code, message, hint),
        }
    }

    /// Gives a table's query; nothing if the table takes its rows `from` somewhere.
    pub fn sql_of(&self, tier: Tier, table: &str) -> Option<&str> {
        match self.query_files.get(&(tier, table.to_owned())) {
            Some(query) => Some(query.text()),
            None => self.spec.tables(tier).get(table)?.sql.as_deref(),
        }
    }

    /// Gives the absolute glob of a `file` source.
    pub fn source_glob(&self, source: &str) -> Option<String> {
        let file = self.spec.sources.get(source)?.file.as_ref()?;
        Some(self.resolve_glob(&["sources", source, "file", "path"], &file.path))
    }

    /// Gives the folder of the file if the path of a file source is relative to it: the source's positions are then
    /// relative too, and survive a move of the folder.
    pub fn source_folder(&self, source: &str) -> Option<PathBuf> {
        let file = self.spec.sources.get(source)?.file.as_ref()?;
        let overridden = self.begins_with_override(&["sources", source, "file", "path"]);
        (Path::new(&file.path).is_relative() && !overridden).then(|| self.folder.clone())
    }

    /// Gives the absolute glob, or the `s3://` URL, of a reference table.
    pub fn reference_path(&self, reference: &str) -> Option<String> {
        let path = &self.spec.reference.get(reference)?.path;
        Some(self.resolve_glob(&["reference", reference, "path"], path))
    }

    /// Gives the root of a tier's tables: an absolute folder or an `s3://` URL. A tier that has no root of its own,
    /// since none of its tables is stored, has that of bronze.
    pub fn lake_root(&self, tier: Tier) -> String {
        match &self.spec.lake {
            Lake::Root(root) => self.resolve(&["lake"], root),
            Lake::Tiers(tiers) => {
                let (tier, root) = tiers.root(tier);
                self.resolve(&root.place_of_path(&["lake", tier.name()]), root.path())
            }
        }
    }

    /// Gives where the archive of a source lies: an absolute folder or an `s3://` URL.
    pub fn archive_root(&self, source: &str) -> Option<String> {
        let archive = self.spec.sources.get(source)?.archive.as_ref()?;
        Some(self.resolve(&["sources", source, "archive", "path"], &archive.path))
    }

    /// Gives the two folders of a source's archive: that of its records, and that of what is told of bad ones.
    pub fn archive_places(&self, source: &str) -> Option<[String; 2]> {
        let (root, prefix) = (self.archive_root(source)?, &self.spec.sources.get(source)?.archive.as_ref()?.prefix);
        let below = |folder: &str| format!("{}/{folder}{prefix}", root.trim_end_matches('/'));
        Some([below(""), below("errors/")].map(|place| place.trim_end_matches('/').to_owned()))
    }

    /// Gives where commit records and positions are kept: an absolute folder or an `s3://` URL.
    pub fn state_root(&self) -> String {
        match &self.spec.state {
            Some(state) => self.resolve(&state.place_of_path(&["state"]), state.path()),
            None => format!("{}/_nexus/{}", self.lake_root(Tier::Bronze).trim_end_matches('/'), self.spec.name),
        }
    }

    /// Gives the absolute path of the file that events about runs are appended to.
    pub fn lineage_file(&self) -> Option<PathBuf> {
        let file = self.spec.lineage.as_ref()?.file.as_ref()?;
        Some(self.resolve(&["lineage", "file"], file).into())
    }

    /// Gives the consumer of a source that is read by fan-out.
    pub fn consumer(&self, source: &str, kinesis: &KinesisSource) -> String {
        let named = || format!("nexus-{}-{source}", self.spec.name).chars().take(CONSUMER_CHARS_MAX).collect();
        kinesis.consumer.clone().unwrap_or_else(named)
    }

    /// Gives where the connection URL of a Postgres sink is kept.
    pub fn database(&self, sink: &PostgresSink) -> Option<SecretRef> {
        let url = self.secret_ref(&sink.url)?;
        Some(match sink.auth {
            PostgresAuth::Password => url,
            PostgresAuth::RdsIam => SecretRef::RdsToken { url: Box::new(url), aws: self.aws(sink.role.as_ref()) },
        })
    }

    /// Gives where AWS is and as whom it is called, by what has perhaps roles of its own.
    pub fn aws(&self, own: Option<&Roles>) -> AwsSettings {
        let aws = &self.spec.aws;
        let session = |given: Option<String>| given.unwrap_or_else(|| format!("nexus-{}", self.spec.name));
        let role = |role: AssumedRole| Role {
            arn: role.arn,
            external_id: role.external_id,
            session_name: session(role.session_name).chars().take(SESSION_CHARS_MAX).collect(),
        };
        let services = aws.endpoints.all().into_iter().filter_map(|(key, url)| {
            let service = match key {
                "kinesis" => Service::Kinesis,
                "s3" => Service::S3,
                "secretsmanager" => Service::SecretsManager,
                "sqs" => Service::Sqs,
                _ => Service::Sts,
            };
            Some((service, url?.clone()))
        });
        AwsSettings {
            region: aws.region.clone(),
            fips: aws.fips,
            endpoints: services.collect(),
            roles: own.or(aws.role.as_ref()).map(Roles::chain).unwrap_or_default().into_iter().map(role).collect(),
        }
    }

    /// Gives how objects of the lake and the state are to be encrypted.
    pub fn encryption(&self) -> Encryption {
        match &self.spec.encryption {
            model::Encryption::SseS3 => Encryption::SseS3,
            model::Encryption::Kms(key) => Encryption::Kms(key.clone()),
            model::Encryption::BucketDefault => Encryption::BucketDefault,
        }
    }

    /// Gives the same, as far as the store takes it in which the state lies, or else the lake or an archive.
    pub async fn accepted_encryption(&self) -> nexus_operators::Result<Encryption> {
        let kept = self.kept().into_iter().map(|kept| (kept.url, kept.aws));
        let mut places = std::iter::once((self.state_root(), self.state_aws())).chain(kept);
        let Some((url, aws)) = places.find(|(url, _)| url.starts_with("s3://")) else { return Ok(self.encryption()) };
        Store::accepted_encryption(&url, &Access { encryption: self.encryption(), aws }).await
    }

    /// Gives as whom the state is kept.
    pub fn state_aws(&self) -> AwsSettings {
        self.aws(self.spec.role_of_state())
    }

    /// Gives as whom a tier, or one of its tables and their quarantine, is kept.
    pub fn lake_aws(&self, tier: Tier, table: Option<&str>) -> AwsSettings {
        self.aws(self.spec.role_in_lake(tier, table))
    }

    /// Gives as whom the archive of a source is kept.
    pub fn archive_aws(&self, source: &str) -> AwsSettings {
        let archive = self.spec.sources.get(source).and_then(|source| source.archive.as_ref());
        self.aws(archive.and_then(|archive| archive.role.as_ref()))
    }

    /// Gives where a secret is kept.
    pub fn secret_ref(&self, name: &str) -> Option<SecretRef> {
        Some(match self.spec.secrets.get(name)? {
            Secret::Env(variable) => SecretRef::Env(variable.clone()),
            Secret::File(path) => SecretRef::File(self.resolve(&["secrets", name, "file"], path).into()),
            Secret::AwsSecretsManager(secret) => {
                let aws = self.aws(secret.role.as_ref());
                SecretRef::AwsSecretsManager { id: secret.id.clone(), key: secret.key.clone(), aws }
            }
        })
    }

    /// Gives the absolute path of the file that a source reads at a step of a test case (0 is what is given first);
    /// nothing if the records stand in place.
    pub fn given_path(&self, test: usize, step: usize, source: &str) -> Option<PathBuf> {
        let Given::File(path) = self.spec.tests.get(test)?.given_at(step)?.get(source)? else { return None };
        let (test, later) = (test.to_string(), step.checked_sub(1).map(|index| index.to_string()));
        let mut place = vec!["tests", test.as_str()];
        place.extend(later.iter().flat_map(|index| ["then", index.as_str()]));
        place.extend(["given", source]);
        Some(self.resolve(&place, path).into())
    }

    /// Resolves a path: from the current folder if it came with `--set`, else from the file's folder.
    pub fn resolve_path(&self, text: &str, came_from_override: bool) -> String {
        if is_url(text) {
            return text.to_owned();
        }
        let path = self.base(came_from_override).join(text);
        // Only an empty path has no absolute one, and this one has a folder before it.
        std::path::absolute(&path).unwrap_or(path).to_string_lossy().into_owned()
    }

    /// Gives the place of what stands under `path`, or of what would hold it.
    pub(super) fn place(&self, path: &[&str]) -> Extent {
        let mut node = &self.root;
        let mut place = Extent { line: 1, column: 1, width: 1 };
        for step in path {
            let Some((key, value)) = below(node, step) else { return place };
            // A mapping is best recognised by its key, a scalar by itself.
            place = match (key, value) {
                (Some(key), Node::Map { .. } | Node::List { .. }) => key,
                (Some(key), scalar) if scalar.is_null() => key,
                (_, value) => value.place(),
            };
            node = value;
        }
        place
    }

    /// Gives what stands under `path`.
    pub(super) fn node(&self, path: &[&str]) -> Option<&Node> {
        path.iter().try_fold(&self.root, |node, step| below(node, step).map(|(_, value)| value))
    }

    /// Gives the keys of a section as they stand in the file, also those whose value is wrong.
    pub(super) fn written_names(&self, section: &str) -> impl Iterator<Item = &str> {
        self.root.get(section).map_or(&[][..], Node::entries).iter().map(|e| e.key.as_str())
    }

    fn read_queries(&mut self, params: &mut Params, found: &mut Vec<Diagnostic>) {
        let mut queries = BTreeMap::new();
        for (tier, table, definition) in self.spec.all_tables() {
            let Some(path) = &definition.sql_file else { continue };
            let place = [tier.name(), table, "sql_file"];
            match Query::read(&self.resolve(&place, path), params) {
                Ok(query) => {
                    queries.insert((tier, table.to_owned()), query);
                }
                Err(in_file) => found.extend(in_file.into_iter().map(|d| match d.place {
                    // The file itself cannot be read: the place is where it is named.
                    None => self.diagnostic_at(&place, d.code, d.message, d.hint),
                    Some(_) => d,
                })),
            }
        }
        self.query_files = queries;
    }

    /// Tells whether a mistake under `path` is one of its own, and does not follow from what stands at `wrong`.
    fn is_sound(&self, path: &[String], wrong: &[Vec<String>]) -> bool {
        let parent: Vec<&str> = path.iter().take(path.len().saturating_sub(1)).map(String::as_str).collect();
        wrong.is_empty()
            || (self.node(&parent).is_some() && !wrong.iter().any(|w| w.starts_with(path) || path.starts_with(w)))
    }

    pub(super) fn resolve(&self, path: &[&str], text: &str) -> String {
        self.resolve_path(text, self.begins_with_override(path))
    }

    /// Like [`resolve`](Self::resolve), with the folder's own brackets and stars escaped.
    fn resolve_glob(&self, path: &[&str], text: &str) -> String {
        if is_url(text) || Path::new(text).is_absolute() {
            return text.to_owned();
        }
        let folder = self.base(self.begins_with_override(path)).to_string_lossy();
        self.resolve_path(&format!("{}/{text}", glob::Pattern::escape(&folder)), false)
    }

    fn base(&self, came_from_override: bool) -> &Path {
        if came_from_override { &self.current_folder } else { &self.folder }
    }

    /// Tells whether the text under `path` begins with a parameter that was given with `--set`.
    fn begins_with_override(&self, path: &[&str]) -> bool {
        let first = self.node(path).and_then(Node::scalar).and_then(|s| s.substituted.first());
        first.is_some_and(|s| s.offset == 0 && s.overridden)
    }
}

/// Tells whether a location is a URL and not a path.
pub(super) fn is_url(text: &str) -> bool {
    text.contains("://")
}

fn misspelt(diagnostic: &Diagnostic) -> bool {
    diagnostic.code == codes::UNKNOWN_KEY && diagnostic.hint.as_ref().is_some_and(|h| h.starts_with("did you mean"))
}

/// Gives the key's place, if there is a key, and the value under one step of a path.
fn below<'a>(node: &'a Node, step: &str) -> Option<(Option<Extent>, &'a Node)> {
    match node {
        Node::Map { entries, .. } => entries.iter().find(|e| e.key == step).map(|e| (Some(e.place), &e.value)),
        Node::List { items, .. } => step.parse::<usize>().ok().and_then(|n| items.get(n)).map(|item| (None, item)),
        Node::Scalar(_) => None,
    }
}
