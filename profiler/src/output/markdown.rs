//! Text from elsewhere in Markdown: it shows as it is and cannot change the page.

/// Longest name in a table, in characters: the names of C++ templates can fill pages. report.json has all of it.
const MAX_CODE_CHARS: usize = 120;

/// A code span for a table cell.
///
/// Source: GitHub Flavored Markdown 0.29, sections 4.10 (`\|` is a pipe in a cell, in code too) and 6.3 (code spans).
pub(super) fn code(text: &str) -> String {
    if text.is_empty() {
        return "-".to_owned();
    }
    let mut short: String = text.chars().take(MAX_CODE_CHARS).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().nth(MAX_CODE_CHARS).is_some() {
        short.push('…');
    }
    let short = short.replace('|', "\\|");
    // The fence is one longer than the longest run of backticks in the text.
    let (mut run, mut longest) = (0, 0);
    for c in short.chars() {
        run = if c == '`' { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    let fence = "`".repeat(longest + 1);
    // A space on both sides is taken off when shown.
    let pad = if longest > 0 { " " } else { "" };
    format!("{fence}{pad}{short}{pad}{fence}")
}

/// Running text.
pub(super) fn prose(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '[' | ']' | '<' | '|' | '&' | '~' => escaped.extend(['\\', c]),
            c if c.is_control() => escaped.push('?'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Running text in which what is between backticks is code; a backtick without another is text.
pub(super) fn prose_with_code(text: &str) -> String {
    let parts: Vec<&str> = text.split('`').collect();
    let paired = parts.len() - usize::from(parts.len().is_multiple_of(2));
    let mut written = String::with_capacity(text.len());
    for (number, part) in parts.iter().enumerate() {
        match number {
            number if number >= paired => written.push_str(&format!("\\`{}", prose(part))),
            number if number % 2 == 1 => written.push_str(&code(part)),
            _ => written.push_str(&prose(part)),
        }
    }
    written
}

/// The last component of a path.
pub(super) fn name(path: &str) -> &str {
    path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_in_names_stays_text() {
        assert_eq!(code("operator|"), "`operator\\|`");
        assert_eq!(code("a`b"), "`` a`b ``");
        assert_eq!(code("a\nb"), "`a?b`");
        assert_eq!(code(""), "-");
        assert_eq!(code(&"x".repeat(200)).chars().count(), 120 + 3);
        assert_eq!(prose("a|b [c](d)"), "a\\|b \\[c\\](d)");
        assert_eq!(name("/usr/lib/libc.so.6"), "libc.so.6");
        assert_eq!(prose_with_code("a*b `c*d` e"), "a\\*b `c*d` e");
        assert_eq!(prose_with_code("a `b"), "a \\`b");
    }
}
