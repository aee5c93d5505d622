//! Shorter names: what stands in angle brackets after a name is left out.

/// Shortens a demangled name of Rust or C++: `Vec<u8, Global>::push` to `Vec<..>::push`.
///
/// Brackets that a Rust path begins with say whose function it is, `<T as Trait>::f`: they stay, shortened inside. A name
/// whose brackets do not match stays as it is.
pub(super) fn shorten(name: &str) -> String {
    if !name.contains('<') {
        return name.to_owned();
    }
    let mut short = String::with_capacity(name.len());
    // For every open bracket, whether what is in it is shown.
    let mut open: Vec<bool> = Vec::new();
    let mut rest = name;
    while let Some(letter) = rest.chars().next() {
        let hidden = open.last() == Some(&false);
        // What is no bracket although it looks like one: arrows and operators, whose name has at most three of them.
        let within = short.ends_with(|before: char| before.is_alphanumeric() || before == '_');
        let operator = rest.strip_prefix("operator").filter(|_| !within).map(|after| {
            let symbols = after.find(|letter| !"<>=-*".contains(letter)).unwrap_or(after.len());
            "operator".len() + operator_length(&after[..symbols])
        });
        let whole =
            operator.or_else(|| rest.starts_with("->").then_some(2)).or_else(|| rest.starts_with("=>").then_some(2));
        let size = whole.unwrap_or(letter.len_utf8());
        let (piece, behind) = rest.split_at(size);
        rest = behind;
        match letter {
            '<' if whole.is_none() => {
                // Generic arguments follow a name, or the `::` of a turbofish.
                let before = short.chars().next_back();
                let follows_name = before.is_some_and(|before| before.is_alphanumeric() || "_:}]".contains(before))
                    || short.strip_suffix(' ').is_some_and(|short| {
                        let name = short.trim_end_matches(|letter| "<>=-*".contains(letter));
                        name.len() < short.len() && name.ends_with("operator")
                    });
                if !hidden {
                    short.push_str(if follows_name { "<..>" } else { "<" });
                }
                open.push(!hidden && !follows_name);
            }
            '>' if whole.is_none() => match open.pop() {
                Some(true) => short.push('>'),
                Some(false) => {}
                None => return name.to_owned(),
            },
            _ if hidden => {}
            _ => short.push_str(piece),
        }
    }
    if open.is_empty() { short } else { name.to_owned() }
}

/// How much of these symbols is the name of an operator of C++: the rest are template arguments.
fn operator_length(symbols: &str) -> usize {
    let operators = ["<=>", "<<=", ">>=", "->*", "<<", ">>", "<=", ">=", "->", "<", ">"];
    let found = operators.iter().find(|operator| symbols.starts_with(**operator));
    found.map_or(0, |operator| operator.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_generics_are_left_out() {
        for (name, short) in [
            ("main", "main"),
            ("alloc::vec::Vec<u8,alloc::alloc::Global>::push", "alloc::vec::Vec<..>::push"),
            ("core::ptr::drop_in_place::<alloc::boxed::Box<dyn Fn() -> u8>>", "core::ptr::drop_in_place::<..>"),
            (
                "<alloc::vec::Vec<T> as core::iter::Extend<&T>>::extend",
                "<alloc::vec::Vec<..> as core::iter::Extend<..>>::extend",
            ),
            ("<&mut I as Iterator>::next", "<&mut I as Iterator>::next"),
            ("std::map<int, std::vector<long> >::operator[](int const&)", "std::map<..>::operator[](int const&)"),
            ("std::operator<< <std::char_traits<char> >(std::ostream&)", "std::operator<< <..>(std::ostream&)"),
            ("a::operator<(a const&, b<int>)", "a::operator<(a const&, b<..>)"),
            ("x::operator->() const", "x::operator->() const"),
            ("f<(a)1>(g<int>*)", "f<..>(g<..>*)"),
            ("unbalanced<int", "unbalanced<int"),
            ("unbalanced>int", "unbalanced>int"),
            (
                "core::ops::function::FnOnce::call_once{{vtable.shim}}",
                "core::ops::function::FnOnce::call_once{{vtable.shim}}",
            ),
        ] {
            assert_eq!(shorten(name), short);
        }
    }

    #[test]
    fn no_name_is_too_strange() {
        for name in ["<", ">", "operator", "operator<", "<<<>>>", "é<ü>", "a<b>>", "->", "operator<<<", ""] {
            let short = shorten(name);
            assert!(short.len() <= name.len() + 4, "{short}");
        }
    }
}
