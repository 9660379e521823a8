//! The book in `docs/book/`: its reference is generated here, its commands are run, its links lead somewhere.
//!
//! `UPDATE_SNAPSHOTS=1` writes anew what is generated, and the output of the commands.

mod console;
mod reference;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::servers::test_env;
use crate::world::{World, files, repository};

fn source(page: &str) -> PathBuf {
    repository("docs/book/src").join(page)
}

fn updates() -> bool {
    std::env::var_os("UPDATE_SNAPSHOTS").is_some()
}

/// Compares a page with what it should be, or writes it anew.
fn keep(page: &str, wanted: &str) {
    if updates() {
        fs::write(source(page), wanted).unwrap_or_else(|e| panic!("{page}: {e}"));
    }
    let found = fs::read_to_string(source(page)).unwrap_or_default();
    let differs = wanted.lines().zip(found.lines()).find(|(wanted, found)| wanted != found);
    assert!(found == wanted, "{page} is not up to date (write it with UPDATE_SNAPSHOTS=1); it differs at {differs:?}");
}

#[test]
fn the_reference_is_true() {
    let world = World::new();
    keep("reference/file.md", &reference::file(&world));
    keep("reference/command.md", &reference::command(&world));
    keep("reference/codes.md", &reference::codes(&world));
}

#[test]
fn the_commands_of_the_tutorials_do_what_is_written() {
    for page in ["tutorial.md", "own-data.md"] {
        keep(page, &console::run(&fs::read_to_string(source(page)).expect("the page is there")));
    }
}

/// Gives all pages of a folder.
fn pages(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for item in fs::read_dir(folder).expect("the folder is there").flatten() {
        match item.path() {
            path if path.is_dir() => found.extend(pages(&path)),
            path if path.extension().is_some_and(|e| e == "md") => found.push(path),
            _ => {}
        }
    }
    found
}

#[test]
fn links_lead_somewhere_and_every_page_is_in_the_summary() {
    let summary = fs::read_to_string(source("SUMMARY.md")).expect("the summary is there");
    let mut all = pages(&source(""));
    for page in &all {
        let name = page.strip_prefix(source("")).expect("it lies below").display().to_string();
        assert!(name == "SUMMARY.md" || summary.contains(&format!("({name})")), "{name} is not in the summary");
    }
    all.extend([repository("README.md"), repository("CONTRIBUTING.md")]);
    for page in all {
        let text = fs::read_to_string(&page).expect("the page is there");
        for link in links(&text) {
            check(&page, &link);
        }
    }
}

/// Where this repository is, for links that lead out of the book.
const REPOSITORY: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/");

fn check(page: &Path, link: &str) {
    let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
    let target = match file.strip_prefix(REPOSITORY) {
        Some(file) => {
            let file = ["blob/main/", "tree/main/"].iter().find_map(|branch| file.strip_prefix(branch));
            repository(file.unwrap_or_else(|| panic!("{}: {link} is of no branch", page.display())))
        }
        None if link.contains("://") || link.starts_with("mailto:") => return,
        None if file.is_empty() => page.to_owned(),
        None => page.parent().expect("it lies in a folder").join(file),
    };
    assert!(target.exists(), "{}: the link {link} leads nowhere", page.display());
    if let Some(anchor) = anchor {
        let text = fs::read_to_string(&target).expect("a link with an anchor leads to a page");
        assert!(headings(&text).contains(anchor), "{}: {link}: there is no such heading", page.display());
    }
}

#[test]
fn the_book_is_built_and_its_links_stay_in_it() {
    let world = World::new();
    let built = world.path("book");
    let mut command = Command::new(test_env().join("python/bin/mdbook"));
    command.arg("build").arg(repository("docs/book")).arg("--dest-dir").arg(&built);
    let output = command.output().unwrap_or_else(|e| panic!("could not run mdbook: {e}; see `make test-env`"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !said.contains("WARN") && !said.contains("ERROR"), "mdbook says:\n{said}");
    let html = files(&built);
    let mut followed = 0;
    for page in html.keys().filter(|path| path.extension().is_some_and(|e| e == "html")) {
        let text = fs::read_to_string(built.join(page)).expect("the page is there");
        let targets = ["href=\"", "src=\""].into_iter().flat_map(|key| text.split(key).skip(1));
        for target in targets.filter_map(|rest| rest.split(['"', '#']).next()) {
            let is_elsewhere = target.is_empty() || target.contains(':') || target.starts_with('/');
            let folder = page.parent().expect("it lies in a folder");
            assert!(is_elsewhere || built.join(folder).join(target).exists(), "{}: {target}", page.display());
            followed += usize::from(!is_elsewhere);
        }
    }
    assert!(html.len() > 20 && followed > 200, "{} files and {followed} links", html.len());
}

/// Gives the targets of the links of a page, those in code left out.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(text) {
        for rest in line.split("](").skip(1) {
            found.extend(rest.split(')').next().map(str::to_owned));
        }
    }
    found
}

/// Gives the anchors of the headings of a page, as GitHub and mdBook make them.
fn headings(text: &str) -> BTreeSet<String> {
    let titles = prose(text).into_iter().filter(|line| line.starts_with('#'));
    let slug = |title: &str| {
        let title = title.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        title.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    titles.map(slug).collect()
}

fn prose(text: &str) -> Vec<&str> {
    let mut in_code = false;
    let outside = |line: &&str| {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
            return false;
        }
        !in_code
    };
    text.lines().filter(outside).collect()
}
