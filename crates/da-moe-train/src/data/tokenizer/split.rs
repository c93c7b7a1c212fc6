//! Text in pieces, which no token crosses.

/// The most bytes of a piece: bounds the time for one, and the length of a token.
pub(super) const LONGEST: usize = 32;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Space,
    Letter,
    Digit,
    Mark,
}

fn class(character: char) -> Class {
    match character {
        _ if character.is_whitespace() => Class::Space,
        _ if character.is_alphabetic() => Class::Letter,
        _ if character.is_numeric() => Class::Digit,
        _ => Class::Mark,
    }
}

/// Runs of letters, digits, other marks or white space. The space before a run belongs to it, and so does an apostrophe
/// before letters (`don`, `'t`). Together the pieces are the text.
pub(super) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (piece, behind) = rest.split_at_checked(first(rest))?;
        rest = behind;
        (!piece.is_empty()).then_some(piece)
    })
}

/// How many bytes the first piece has.
fn first(text: &str) -> usize {
    let mut characters = text.chars();
    let (Some(one), two) = (characters.next(), characters.next()) else { return 0 };
    let (one_class, two_class) = (class(one), two.map(class));
    let joined = match one {
        ' ' => two_class != Some(Class::Space),
        '\'' => two_class == Some(Class::Letter),
        _ => false,
    };
    let run_class = two_class.filter(|_| joined).unwrap_or(one_class);

    let mut bytes = one.len_utf8();
    for (index, character) in text.char_indices().skip(1) {
        let end = index + character.len_utf8();
        if class(character) != run_class || end > LONGEST {
            break;
        }
        // A space goes with the run that it stands before.
        let before_run =
            text.get(end..).and_then(|rest| rest.chars().next()).is_some_and(|next| class(next) != Class::Space);
        if character == ' ' && before_run {
            break;
        }
        bytes = end;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<&str> {
        pieces(text).collect()
    }

    #[test]
    fn words_keep_the_space_before_them() {
        assert_eq!(split("The dog's 12 toys, don't!"), ["The", " dog", "'s", " 12", " toys", ",", " don", "'t", "!"]);
        assert_eq!(split("a\n\n  b  "), ["a", "\n\n ", " b", "  "]);
        assert_eq!(split(" \"Ünïcode—"), [" \"", "Ünïcode", "—"]);
        assert_eq!(split(""), [""; 0]);
    }

    #[test]
    fn no_piece_is_longer_than_the_longest() {
        for text in ["x".repeat(100), "世".repeat(100), " ".repeat(100), format!(" {}", "é".repeat(99))] {
            assert!(split(&text).iter().all(|piece| piece.len() <= LONGEST && !piece.is_empty()), "{text}");
            assert_eq!(split(&text).concat(), text);
        }
    }
}
