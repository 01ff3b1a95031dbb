//! Env files: which are read, and into which layer each line goes.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use secrecy::zeroize::Zeroizing;

use crate::compose;
use crate::env_file::{self, Item};
use crate::error::Problem;
use crate::identity::{self, Deployment};
use crate::layers::{Definition, Layer, Layers};
use crate::origin::Origin;

/// The variable that replaces the search.
pub(crate) const ENV_FILES: &str = "MAESTRO_ENV_FILES";
/// The variable that says which kind of environment this is.
pub(crate) const ENVIRONMENT: &str = "MAESTRO_ENVIRONMENT";

/// Longest env file, in bytes.
const LONGEST_FILE: u64 = 1 << 20;
/// Lines of one file that are reported each; a file with more of them is no env file, and a report of
/// all of them nobody's help.
const MOST_LINES: usize = 20;
/// Includes inside includes; a bound, far beyond use.
const DEEPEST: usize = 16;

/// What a file's name says about its rank.
#[derive(Clone, Copy)]
enum Rank {
    Infrastructure = 0,
    Shared = 1,
    Deployment = 2,
    Local = 3,
}

/// Layers of the infrastructure's files, one for each rank; the service's own files follow, then
/// the process environment.
const OF_INFRASTRUCTURE: usize = 4;
const OF_SERVICE: usize = 3;

/// The layers of a process that runs in `directory`, and what is wrong with its files.
pub(crate) fn load(directory: &Path, process: Layer) -> (Layers, Vec<Problem>) {
    let mut layers = Layers(vec![Layer::default(); OF_INFRASTRUCTURE + OF_SERVICE]);
    layers.0.push(process);
    let mut loading = Loading {
        directory,
        layers,
        problems: Vec::new(),
        read: BTreeSet::new(),
    };
    let named = loading
        .text(ENV_FILES)
        .filter(|text| !text.trim().is_empty());
    if loading.deployment().is_some_and(Deployment::is_strict) {
        if named.is_some() {
            loading.refuse_named();
        }
        return (loading.layers, loading.problems);
    }
    match named {
        Some(list) => loading.named(&list),
        None => loading.search(),
    }
    loading.check_deployment();
    loading.check_files();
    (loading.layers, loading.problems)
}

/// The settings of one file's text, and what is wrong with it.
pub(crate) fn of_text(name: &str, text: &str) -> (Layer, Vec<Problem>) {
    let parsed = env_file::parse(text);
    let path = Path::new(name);
    let mut layer = Layer::default();
    let faults = parsed.faults.into_iter();
    let mut problems = first_of(path, faults.map(|fault| of_fault(path, fault)));
    for (line, item) in parsed.items {
        let origin = of_line(path, line);
        match item {
            Item::Assign { name, value } => layer.definitions.push(Definition {
                name,
                value: Some(value),
                origin,
            }),
            Item::Include { .. } => problems.push(of_file(
                name,
                &origin,
                "includes another file, which is not followed here".to_owned(),
                "look at that file as well".to_owned(),
            )),
        }
    }
    (layer, problems)
}

struct Loading<'a> {
    directory: &'a Path,
    layers: Layers,
    problems: Vec<Problem>,
    /// Files read, by canonical path: one that is found twice counts once.
    read: BTreeSet<PathBuf>,
}

impl Loading<'_> {
    fn search(&mut self) {
        let own = self.directory.to_owned();
        let infrastructure = self.infrastructure();
        for directory in infrastructure.iter().chain([&own]) {
            self.found(&directory.join(".env.infrastructure"), Rank::Infrastructure);
        }
        self.found_everywhere(infrastructure.as_deref(), ".env.shared", Rank::Shared);
        self.found_everywhere(infrastructure.as_deref(), ".env", Rank::Local);
        // Known only now: any of these may say it.
        if let Some(deployment) = self.deployment() {
            let name = format!(".env.{deployment}");
            self.found_everywhere(infrastructure.as_deref(), &name, Rank::Deployment);
        }
    }

    /// A file in the infrastructure folder, then in the working directory.
    fn found_everywhere(&mut self, infrastructure: Option<&Path>, name: &str, rank: Rank) {
        let own = self.directory.to_owned();
        for directory in infrastructure.into_iter().chain([own.as_path()]) {
            self.found(&directory.join(name), rank);
        }
    }

    /// `infrastructure/` in the working directory or in the nearest directory above. A directory
    /// that everybody may write to ends the search: a folder there can be anybody's.
    fn infrastructure(&self) -> Option<PathBuf> {
        self.directory
            .ancestors()
            .take_while(|directory| !is_open_to_all(directory))
            .map(|directory| directory.join("infrastructure"))
            .find(|candidate| candidate.is_dir())
    }

    fn named(&mut self, list: &str) {
        for name in list
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            let path = self.directory.join(name);
            if let Presence::Absent(why) = self.read_file(&path, Rank::Local, &mut Vec::new()) {
                let named_in = self.origin(ENV_FILES);
                self.problem(
                    ENV_FILES,
                    &named_in,
                    format!("names the file {}, {why}", self.shown(&path).display()),
                    "correct the path; relative ones begin at the working directory".to_owned(),
                );
            }
        }
    }

    fn found(&mut self, path: &Path, rank: Rank) {
        self.read_file(path, rank, &mut Vec::new());
    }

    /// Reads one file; `including` holds the canonical paths of the files that lead here.
    fn read_file(&mut self, path: &Path, rank: Rank, including: &mut Vec<PathBuf>) -> Presence {
        let shown = self.shown(path);
        if let Err(absent) = presence(path) {
            return absent;
        }
        let canonical = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if including.contains(&canonical) {
            return Presence::Cycle;
        }
        if !self.read.insert(canonical.clone()) {
            return Presence::Read;
        }
        if is_compose_file(path) {
            self.refuse_compose(path, &shown);
            return Presence::Read;
        }
        let Some(text) = self.text_of(path, &shown) else {
            return Presence::Read;
        };
        let layer = layer_of(&canonical, rank);
        let parsed = env_file::parse(&text);
        let faults = parsed.faults.into_iter();
        self.problems.extend(first_of(
            &shown,
            faults.map(|fault| of_fault(&shown, fault)),
        ));
        including.push(canonical);
        for (line, item) in parsed.items {
            let origin = of_line(&shown, line);
            match item {
                Item::Assign { name, value } => {
                    if let Some(layer) = self.layers.0.get_mut(layer) {
                        let value = Some(value);
                        layer.definitions.push(Definition {
                            name,
                            value,
                            origin,
                        });
                    }
                }
                Item::Include {
                    path: template,
                    optional,
                } => {
                    self.include(path, &template, optional, &origin, rank, including);
                }
            }
        }
        including.pop();
        Presence::Read
    }

    fn include(
        &mut self,
        from: &Path,
        template: &crate::template::Template,
        optional: bool,
        origin: &Origin,
        rank: Rank,
        including: &mut Vec<PathBuf>,
    ) {
        let name = self.shown(from).display().to_string();
        let target = match self.layers.expand(template) {
            Ok(target) => target,
            Err(fault) => {
                self.problem(
                    &name,
                    origin,
                    format!("includes a path that {}", fault.message()),
                    fault.fix("NAME"),
                );
                return;
            }
        };
        let base = from.parent().unwrap_or(self.directory);
        let path = base.join(target.as_str());
        let shown = self.shown(&path);
        let (message, fix) = if including.len() >= DEEPEST {
            (
                "too deep inside other includes".to_owned(),
                "include it from the file that is read first",
            )
        } else {
            match self.read_file(&path, rank, including) {
                Presence::Absent(why) if !optional => (
                    why,
                    "correct the path, which begins at the including file, or remove the line",
                ),
                Presence::Cycle => (
                    "which includes this file".to_owned(),
                    "remove one of the two lines",
                ),
                Presence::Absent(_) | Presence::Read => return,
            }
        };
        self.problem(
            &name,
            origin,
            format!("includes {}, {message}", shown.display()),
            fix.to_owned(),
        );
    }

    /// The text of a file; a line that is not UTF-8 is reported and left out.
    fn text_of(&mut self, path: &Path, shown: &Path) -> Option<Zeroizing<String>> {
        let name = shown.display().to_string();
        let mut bytes = Zeroizing::new(Vec::new());
        let outcome = std::fs::File::open(path)
            .and_then(|file| file.take(LONGEST_FILE + 1).read_to_end(&mut bytes));
        let refused = match outcome {
            Err(error) => Some((
                format!("cannot be read ({})", error.kind()),
                "let the user of the process read it, or remove it",
            )),
            Ok(_) if bytes.len() as u64 > LONGEST_FILE => Some((
                "is longer than 1 MiB".to_owned(),
                "keep the settings alone in it; if this is no env file, name another",
            )),
            Ok(_) => None,
        };
        if let Some((message, fix)) = refused {
            self.problem(&name, &of_line(shown, 1), message, fix.to_owned());
            return None;
        }
        let mut text = Zeroizing::new(String::with_capacity(bytes.len()));
        let mut left_out = Vec::new();
        for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
            if let Ok(line) = std::str::from_utf8(line) {
                text.push_str(line);
            } else {
                text.push('\n');
                left_out.push(index + 1);
            }
        }
        let not_utf8 = left_out.into_iter().map(|line| {
            let fix = "save the file as UTF-8".to_owned();
            of_file(&name, &of_line(shown, line), "is not UTF-8".to_owned(), fix)
        });
        self.problems.extend(first_of(shown, not_utf8));
        Some(text)
    }

    fn refuse_compose(&mut self, path: &Path, shown: &Path) {
        let names = self
            .text_of(path, shown)
            .map(|text| compose::variables(&text))
            .unwrap_or_default();
        let listed = match names.as_slice() {
            [] => String::new(),
            names => format!(": {}", names.join(", ")),
        };
        let origin = of_line(shown, 1);
        self.problem(
            &shown.display().to_string(),
            &origin,
            format!("is a compose file, and compose alone hands its `environment:` to the service{listed}"),
            "run the service under compose, or write each as NAME=value into .env.shared and name that file here".to_owned(),
        );
    }

    fn refuse_named(&mut self) {
        let origin = self.origin(ENV_FILES);
        self.problem(
            ENV_FILES,
            &origin,
            "names env files, and none is read in staging and production".to_owned(),
            "unset it, and set the variables in the deployment itself".to_owned(),
        );
    }

    /// Which files are read cannot be said in one of them.
    fn check_files(&mut self) {
        let origin = self
            .layers
            .names()
            .find(|(name, origin)| *name == ENV_FILES && matches!(origin, Origin::File { .. }))
            .map(|(_, origin)| origin.clone());
        if let Some(origin) = origin {
            self.problem(
                ENV_FILES,
                &origin,
                "is set in an env file, where it comes too late".to_owned(),
                "set it in the process environment, or write `source path` here".to_owned(),
            );
        }
    }

    /// A file must not be what turns the strict rules on: the next deployment has no such file.
    fn check_deployment(&mut self) {
        let strict = self.deployment().is_some_and(Deployment::is_strict);
        let origin = self.origin(ENVIRONMENT);
        if strict && matches!(origin, Origin::File { .. }) {
            self.problem(
                ENVIRONMENT,
                &origin,
                "is staging or production by an env file, and there env files are not read"
                    .to_owned(),
                "set MAESTRO_ENVIRONMENT in the process environment of the deployment".to_owned(),
            );
        }
    }

    fn deployment(&self) -> Option<Deployment> {
        Deployment::parse(self.text(ENVIRONMENT)?.trim())
    }

    fn text(&self, name: &str) -> Option<Zeroizing<String>> {
        Some(self.layers.effective(name)?.ok()?.text)
    }

    fn origin(&self, name: &str) -> Origin {
        match self.layers.effective(name) {
            Some(Ok(value)) => value.origin,
            _ => Origin::Unset,
        }
    }

    /// The path as a person in the working directory would write it.
    fn shown(&self, path: &Path) -> PathBuf {
        if let Ok(inside) = path.strip_prefix(self.directory) {
            return inside.to_owned();
        }
        // One `..` for each level, as in `../infrastructure/.env.infrastructure`.
        let mut up = PathBuf::new();
        for ancestor in self.directory.ancestors().skip(1).take(3) {
            up.push(Component::ParentDir);
            if let Ok(inside) = path.strip_prefix(ancestor) {
                return up.join(inside);
            }
        }
        path.to_owned()
    }

    fn problem(&mut self, name: &str, origin: &Origin, message: String, fix: String) {
        self.problems.push(of_file(name, origin, message, fix));
    }
}

fn of_line(path: &Path, line: usize) -> Origin {
    Origin::File {
        path: path.to_owned(),
        line,
    }
}

/// A line that is not understood, under its variable's name or else the file's.
fn of_fault(path: &Path, fault: env_file::Fault) -> Problem {
    let name = fault.name.unwrap_or_else(|| path.display().to_string());
    let origin = of_line(path, fault.line);
    of_file(
        &name,
        &origin,
        fault.message.to_owned(),
        fault.fix.to_owned(),
    )
}

/// The first problems of a file's lines, and how many more there are.
fn first_of(path: &Path, mut problems: impl ExactSizeIterator<Item = Problem>) -> Vec<Problem> {
    let mut first: Vec<_> = problems.by_ref().take(MOST_LINES).collect();
    let more = problems.len();
    first.extend(problems.next().map(|next| Problem {
        variable: path.display().to_string(),
        message: format!("begins {more} more lines that cannot be used"),
        fix: "mend the ones above first; if this is no env file, name another".to_owned(),
        ..next
    }));
    first
}

/// A problem of a file, or of one of the two variables that say which are read.
fn of_file(name: &str, origin: &Origin, message: String, fix: String) -> Problem {
    let variable = [&identity::ENVIRONMENT, &identity::ENV_FILES]
        .into_iter()
        .find(|variable| variable.name() == name);
    if let Some(variable) = variable {
        return Problem::of(variable, origin, message, fix);
    }
    Problem {
        variable: name.to_owned(),
        origin: origin.to_string(),
        message,
        expected: LINE.0.to_owned(),
        example: LINE.1.to_owned(),
        fix,
    }
}

/// What an env file is made of, and an example.
const LINE: (&str, &str) = (
    "`NAME=value`, `source path` or a comment on a line",
    "MAESTRO_TEAM='platform'",
);

#[derive(PartialEq, Eq)]
enum Presence {
    Read,
    /// Why there is nothing to read; reads on after the path and a comma.
    Absent(String),
    Cycle,
}

fn presence(path: &Path) -> Result<(), Presence> {
    let why = match std::fs::metadata(path) {
        // A directory called `.env` is some tool's, and to open a pipe would wait for its writer.
        Ok(metadata) if metadata.is_file() => return Ok(()),
        Ok(_) => "which is not a file".to_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            "which does not exist".to_owned()
        }
        Err(error) => format!("which cannot be reached ({})", error.kind()),
    };
    Err(Presence::Absent(why))
}

/// Whatever lies in an `infrastructure/` folder is the platform's, and so is the file of that name.
fn layer_of(path: &Path, rank: Rank) -> usize {
    if path.file_name() == Some(".env.infrastructure".as_ref()) {
        return Rank::Infrastructure as usize;
    }
    if path.parent().and_then(Path::file_name) == Some("infrastructure".as_ref()) {
        return rank as usize;
    }
    OF_INFRASTRUCTURE + (rank as usize).max(Rank::Shared as usize) - 1
}

fn is_compose_file(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "yml" || extension == "yaml")
}

fn is_open_to_all(directory: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(directory).is_ok_and(|m| m.permissions().mode() & 0o002 != 0)
}
