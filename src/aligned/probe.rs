//! Texts on which two tokenizers must agree before one stands in for the other.
//!
//! Chosen for where implementations part: white space runs and line ends, contractions, digits,
//! scripts, combining marks and what normalisation changes, emoji sequences, and added tokens,
//! whole and cut, with and without white space around them.

const TEXTS: [&str; 24] = [
    "The quick brown fox jumps over the lazy dog; it's what foxes do, they'd say, and we'll agree. \
     DON'T SHOUT, I'M HERE. O'Neill's \"quoted\" words\u{2014}and dashes\u{2026}",
    "You are a helpful assistant. Answer briefly.\n\nUser: What is the capital of France?\r\n\r\n\
     Assistant: Paris.\r\n\t\tIndented, then   three spaces, then trailing   \n   \n\n\n",
    "fn main() {\n    let mut total: u64 = 0;\n    for (i, x) in xs.iter().enumerate() {\n        \
     total += (x ^ 0xDEAD_BEEF) as u64 * i; // wrapping?\n    }\n    println!(\"{total:>8}\");\n}\n",
    "import os, sys\n\ndef f(a_b, *args, **kw):\n\t\"\"\"Docstring.\"\"\"\n\treturn {k: v for k, v in \
     kw.items() if not k.startswith('__')} or args[-1:]\n\n\nif __name__ == '__main__':\n\tf(1)\n",
    "{\"type\": \"function\", \"function\": {\"name\": \"get_weather\", \"parameters\": {\"type\": \
     \"object\", \"properties\": {\"city\": {\"type\": \"string\"}}, \"required\": [\"city\"]}}}",
    "SELECT a.id, COUNT(*) FROM t AS a WHERE a.x >= 3.14159 AND b <> 'it''s' GROUP BY 1;\n",
    "0 1 12 123 1234 12345 1234567890 3.14 1e-9 0x1F 1,000,000 192.168.0.1 2026-11-21T13:54:08Z",
    "\u{661}\u{662}\u{663} \u{967}\u{968} \u{ff11}\u{ff12} \u{2160}\u{2161} \u{bd} x\u{b2} 10\u{2075}",
    "\u{6211}\u{4eec}\u{5728}\u{5317}\u{4eac}\u{7684}\u{4e00}\u{5bb6}\u{5c0f}\u{9910}\u{9986}\
     \u{91cc}\u{5403}\u{996d}\u{ff0c}\u{5929}\u{6c14}\u{5f88}\u{597d}\u{3002}\u{4f60}\u{597d}\u{ff01}",
    "\u{65e5}\u{672c}\u{8a9e}\u{306e}\u{30c6}\u{30ad}\u{30b9}\u{30c8}\u{3067}\u{3059}\u{3002}\
     \u{ff76}\u{ff80}\u{ff76}\u{ff85}\u{ff9e} \u{d55c}\u{ad6d}\u{c5b4} \u{1112}\u{1161}\u{11ab}",
    "\u{41f}\u{440}\u{438}\u{432}\u{435}\u{442}, \u{43c}\u{438}\u{440}! \u{3b3}\u{3b5}\u{3b9}\u{3ac} \
     \u{3c3}\u{3bf}\u{3c5}, \u{5e9}\u{5dc}\u{5d5}\u{5dd} \u{645}\u{631}\u{62d}\u{628}\u{627}",
    "\u{928}\u{92e}\u{938}\u{94d}\u{924}\u{947} \u{e2a}\u{e27}\u{e31}\u{e2a}\u{e14}\u{e35} \
     \u{1019}\u{103c}\u{1014}\u{103a}\u{1019}\u{102c} \u{10e5}\u{10d0}\u{10e0}\u{10d7}",
    "caf\u{e9} cafe\u{301} \u{212b} \u{c5} A\u{30a} \u{fb01}ne \u{1e9b}\u{323} na\u{ef}ve nai\u{308}ve",
    "Gr\u{fc}\u{df}e Gru\u{308}\u{df}e \u{130}stanbul \u{1c5}ungla \u{2126} \u{3a9} q\u{307}\u{323}",
    "\u{1f44b}\u{1f3fd} \u{1f469}\u{200d}\u{1f469}\u{200d}\u{1f467}\u{200d}\u{1f466} \u{1f1e9}\u{1f1ea} \
     \u{2764}\u{fe0f} \u{1f600}\u{1f600}\u{1f600} ok\u{1f44d}now",
    "a\u{a0}b \u{a0} c\u{2003}d\u{2009}\u{2009}e\u{3000}f\u{200b}g\u{feff}h\u{85}i\u{2028}j\u{b}k\u{c}l",
    " ",
    "          \n     \n\n  \t \t\t\r\n \r \r\r\n    x    \t    ",
    "\n\n\n\n\n\n\n\n\n\n.\n\n\n!\n",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "================--------------------________________################****************////////",
    "?!?!?!...;;;:::((((()))))[[[]]]{{{}}}<<<>>>|||&&&%%%$$$@@@~~~```'''\"\"\"\\\\\\^^^+++===",
    "\0\u{1}\u{7f}\u{80}\u{9f}\u{ad}\u{378}\u{e000}\u{fffd}\u{10ffff} https://a.b/c?d=e&f=%20#g x@y.z",
    "camelCaseWordsAndHTTPServers snake_case_words kebab-case-words ALLCAPS iPhone15Pro v2.0.1-rc3",
];

/// Added tokens tried, of tokenizers that have very many.
const ADDED_MAX: usize = 1_024;

/// All probe texts for a tokenizer with these added tokens.
pub(super) fn texts(added: &[&str]) -> Vec<String> {
    let mut texts: Vec<String> = TEXTS.map(str::to_owned).into();
    texts.push(TEXTS.concat());
    for token in added.iter().take(ADDED_MAX) {
        let half: String = token.chars().take(token.chars().count() / 2).collect();
        texts.push(format!("a{token}b {token} {token}{token}\n{token}\n\n {half}{token}{half}"));
    }
    texts
}
