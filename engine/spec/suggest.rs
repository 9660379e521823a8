//! "Did you mean": the nearest of the names that exist.

/// The longest word that is looked for; nobody misspells a longer one by a letter.
const WORD_CHARS_MAX: usize = 100;

/// How many candidates are looked at, so that a file full of mistakes is refused soon.
const CANDIDATES_MAX: usize = 1000;

/// Gives the candidate that is probably meant by `word`.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    // A third of the letters may be wrong: more, and short words all resemble one another.
    let chars = word.chars().count();
    let wrong_max = (chars / 3).max(1);
    if chars > WORD_CHARS_MAX {
        return None;
    }
    candidates
        .into_iter()
        .take(CANDIDATES_MAX)
        .filter(|c| c.chars().count().abs_diff(chars) <= wrong_max)
        .map(|c| (strsim::damerau_levenshtein(&lower, &c.to_lowercase()), c))
        .filter(|(wrong, c)| *wrong <= wrong_max && *wrong < c.chars().count())
        .min_by_key(|(wrong, _)| *wrong)
        .map(|(_, c)| c)
}

/// Writes a hint with the nearest name, and else with all of them.
pub fn hint<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str> + Clone) -> Option<String> {
    match nearest(word, candidates.clone()) {
        Some(name) => Some(format!("did you mean `{name}`?")),
        None => available(candidates),
    }
}

/// Writes a list of names; nothing if there is none.
pub fn available<'a>(candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    /// What fits a line or two of a terminal.
    const NAMES_MAX: usize = 20;
    let names: Vec<String> = candidates.into_iter().map(|c| format!("`{c}`")).collect();
    let more = if names.len() > NAMES_MAX { ", ..." } else { "" };
    let listed = names.get(..NAMES_MAX).unwrap_or(&names).join(", ");
    (!names.is_empty()).then(|| format!("available: {listed}{more}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_forgiven_and_another_word_is_not() {
        let keys = ["expect", "from", "sql", "sql_file", "unique"];
        assert_eq!(nearest("expct", keys), Some("expect"));
        assert_eq!(nearest("form", keys), Some("from"));
        assert_eq!(nearest("frm", keys), Some("from"));
        assert_eq!(nearest("SQL", keys), Some("sql"));
        assert_eq!(nearest("banana", keys), None);
        assert_eq!(hint("banana", ["a", "b"]), Some("available: `a`, `b`".to_owned()));
        assert_eq!(hint("banana", []), None);
    }
}
