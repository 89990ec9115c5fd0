//! What several proxies were measured at, round by round, and how one compares with the others.

use std::fmt::Write;

/// One quantity of all carriers: by carrier, then by round.
pub(crate) struct Row {
    name: &'static str,
    digits: usize,
    by_carrier: Vec<Vec<f64>>,
}

impl Row {
    /// A row for so many carriers, of which the first is ours.
    pub(crate) fn new(name: &'static str, digits: usize, carriers: usize) -> Row {
        Row { name, digits, by_carrier: vec![Vec::new(); carriers] }
    }

    /// Adds the value of a round; not a number: this carrier has none.
    pub(crate) fn push(&mut self, carrier: usize, value: f64) {
        if let Some(values) = self.by_carrier.get_mut(carrier) {
            values.push(value);
        }
    }

    /// Carriers whose rounds are fewer than `rounds`, by their place.
    pub(crate) fn incomplete(&self, rounds: usize) -> Vec<usize> {
        let lacks = |(_, values): &(usize, &Vec<f64>)| values.len() != rounds;
        self.by_carrier.iter().enumerate().filter(lacks).map(|(i, _)| i).collect()
    }

    /// The row as text: what each carrier was measured at, and ours divided by it round by round.
    pub(crate) fn text(&self, names: &[String]) -> String {
        let mut text = format!(
            "{:<36} {:>9} {:>9} {:>9}   {}\n",
            self.name, "min", "median", "max", "ours divided by it"
        );
        let ours = self.by_carrier.first().map_or(&[][..], Vec::as_slice);
        for (i, (name, values)) in names.iter().zip(&self.by_carrier).enumerate() {
            if values.iter().all(|value| value.is_nan() || *value == 0.0) {
                continue;
            }
            let [min, median, max] = spread(values);
            let digits = if median.abs() >= 1000.0 { 0 } else { self.digits };
            let _ = write!(text, "  {name:<34} {min:>9.digits$} {median:>9.digits$} {max:>9.digits$}");
            // The direct connection is over itself by nothing.
            if i > 0 && median != 0.0 {
                let pairs: Vec<f64> = ours.iter().zip(values).map(|(ours, it)| ours / it).collect();
                let [min, median, max] = spread(&pairs);
                let _ = write!(text, "   {min:>5.2} {median:>5.2} {max:>5.2}");
            }
            text.push('\n');
        }
        text
    }
}

/// The least, the median and the largest.
fn spread(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    [at(0), at(sorted.len() / 2), at(sorted.len().saturating_sub(1))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_round_by_round() {
        let mut row = Row::new("short connections a second", 2, 3);
        for (ours, it) in [(100.0, 50.0), (90.0, 100.0), (300.0, 100.0)] {
            row.push(0, ours);
            row.push(1, it);
            row.push(2, f64::NAN);
        }
        row.push(0, 1.0);
        assert_eq!(row.incomplete(3), [0]);
        let text = row.text(&["agent".to_owned(), "nginx".to_owned(), "direct".to_owned()]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["agent", "1.00", "100.00", "300.00"]);
        assert_eq!(lines[2], ["nginx", "50.00", "100.00", "100.00", "0.90", "2.00", "3.00"]);
        assert_eq!(lines.len(), 3, "a row without a value is left out");
    }
}
