//! A strict reader of OpenMetrics 1.0 text, as far as reports use it: every departure is an error.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::collections::HashSet;

/// A metric family as the text has it.
#[derive(Debug)]
pub struct Family {
    pub name: String,
    pub kind: String,
    pub unit: Option<String>,
    pub help: Option<String>,
    pub samples: Vec<Sample>,
}

/// A line with a value.
#[derive(Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: Vec<(String, String)>,
    pub value: f64,
}

impl Sample {
    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        let mut labels = self.labels.iter();
        let (_, value) = labels.find(|(label, _)| label == name)?;
        Some(value)
    }
}

/// The families of a text.
pub fn read(text: &str) -> Result<Vec<Family>, String> {
    let body = text
        .strip_suffix("# EOF\n")
        .ok_or("no '# EOF' at the end")?;
    if !body.is_empty() && !body.ends_with('\n') {
        return Err("the line before '# EOF' has no end".to_owned());
    }
    let mut families: Vec<Family> = Vec::new();
    let mut names = HashSet::new();
    let mut series = HashSet::new();
    for line in body.split_terminator('\n') {
        let wrong = |why: &str| format!("{why}: {line:?}");
        if let Some(header) = line.strip_prefix("# ") {
            let mut words = header.splitn(3, ' ');
            let (Some(word), Some(name), Some(rest)) = (words.next(), words.next(), words.next())
            else {
                return Err(wrong("a header of fewer than three words"));
            };
            if !is_name(name) {
                return Err(wrong("no name of a family"));
            }
            if word == "TYPE" {
                let is_known = ["counter", "gauge", "stateset", "info"].contains(&rest);
                if !is_known || !names.insert(name.to_owned()) {
                    return Err(wrong("an unknown type, or a second family of the name"));
                }
                families.push(Family {
                    name: name.to_owned(),
                    kind: rest.to_owned(),
                    unit: None,
                    help: None,
                    samples: Vec::new(),
                });
                continue;
            }
            let family = families.last_mut().filter(|family| family.name == name);
            let family = family.ok_or_else(|| wrong("a header of another family"))?;
            if !family.samples.is_empty() {
                return Err(wrong("a header behind samples"));
            }
            let (place, text) = match word {
                "UNIT" => {
                    let is_measured = ["counter", "gauge"].contains(&family.kind.as_str());
                    if !is_measured || !name.ends_with(&format!("_{rest}")) {
                        return Err(wrong("no unit of this family"));
                    }
                    (&mut family.unit, rest.to_owned())
                }
                "HELP" => (
                    &mut family.help,
                    unescaped(rest).ok_or_else(|| wrong("a bare quote"))?,
                ),
                _ => return Err(wrong("an unknown header")),
            };
            if place.replace(text).is_some() {
                return Err(wrong("a header twice"));
            }
            continue;
        }
        let family = families.last_mut().ok_or_else(|| wrong("no family"))?;
        let sample = sample(line).map_err(|why| wrong(&why))?;
        check(family, &sample).map_err(|why| wrong(&why))?;
        let mut labels = sample.labels.clone();
        labels.sort();
        if labels.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(wrong("a label twice"));
        }
        if !series.insert((sample.name.clone(), labels)) {
            return Err(wrong("a sample twice"));
        }
        family.samples.push(sample);
    }
    Ok(families)
}

/// What the type of a family demands of its samples.
fn check(family: &Family, sample: &Sample) -> Result<(), String> {
    let suffix = sample.name.strip_prefix(&family.name);
    let suffix = suffix.ok_or("a sample of another family")?;
    let is_fine = match family.kind.as_str() {
        "counter" => suffix == "_total" && sample.value >= 0.0,
        "info" => suffix == "_info" && sample.value == 1.0,
        "stateset" => {
            let has_state = sample.label(&family.name).is_some();
            suffix.is_empty() && has_state && [0.0, 1.0].contains(&sample.value)
        }
        _ => suffix.is_empty(),
    };
    match is_fine {
        true => Ok(()),
        false => Err(format!("no sample of a {}", family.kind)),
    }
}

fn sample(line: &str) -> Result<Sample, String> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, mut rest) = line.split_at(end);
    if !is_name(name) {
        return Err("no name of a sample".to_owned());
    }
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, quoted) = rest.split_once("=\"").ok_or("no label")?;
            if !is_name(label) || label.contains(':') {
                return Err(format!("no name of a label: {label:?}"));
            }
            let end = end_of_quoted(quoted).ok_or("a quoted value without an end")?;
            let value = unescaped(&quoted[..end]).ok_or("a bare quote or backslash")?;
            labels.push((label.to_owned(), value));
            rest = &quoted[end + 1..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        rest = rest.strip_prefix('}').ok_or("no end of the labels")?;
    }
    let value = rest.strip_prefix(' ').ok_or("no blank before the value")?;
    let is_number = |letter: char| letter.is_ascii_digit() || "+-.eE".contains(letter);
    if value.is_empty() || !value.chars().all(is_number) {
        return Err("no plain number".to_owned());
    }
    Ok(Sample {
        name: name.to_owned(),
        labels,
        value: value.parse().map_err(|_| "no number")?,
    })
}

/// Where the quote stands that ends a value.
fn end_of_quoted(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    for (at, letter) in text.char_indices() {
        match letter {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return Some(at),
            _ => {}
        }
    }
    None
}

fn unescaped(text: &str) -> Option<String> {
    let mut plain = String::new();
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        plain.push(match letter {
            '\\' => match letters.next()? {
                'n' => '\n',
                escaped @ ('\\' | '"') => escaped,
                _ => return None,
            },
            '"' => return None,
            plain => plain,
        });
    }
    Some(plain)
}

fn is_name(name: &str) -> bool {
    let is_first = |letter: char| letter.is_ascii_alphabetic() || letter == '_' || letter == ':';
    let mut letters = name.chars();
    letters.next().is_some_and(is_first)
        && letters.all(|letter| is_first(letter) || letter.is_ascii_digit())
}
