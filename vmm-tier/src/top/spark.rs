//! A sparkline: a figure from 0 to 1 over time, the least value of each column's time.

/// Where the scale may begin: the highest that is below all values.
const BEGINS: [f64; 3] = [0.9, 0.5, 0.0];
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A drawn line, and where its scale begins.
#[derive(Debug, PartialEq)]
pub(super) struct Spark {
    pub(super) line: String,
    pub(super) begin: f64,
}

/// Draws points, a time and a value each, between two times in so many columns. A time without a point is
/// blank.
pub(super) fn draw(
    points: impl Iterator<Item = (f64, f64)>,
    from: f64,
    to: f64,
    width: usize,
) -> Spark {
    let mut least: Vec<Option<f64>> = vec![None; width];
    let length = (to - from).max(f64::MIN_POSITIVE);
    for (at, value) in points.filter(|(at, _)| (from..=to).contains(at)) {
        let column = ((at - from) / length * width as f64) as usize;
        let column = column.min(width.saturating_sub(1));
        if let Some(least) = least.get_mut(column) {
            let value = value.clamp(0.0, 1.0);
            *least = Some(least.map_or(value, |known| known.min(value)));
        }
    }
    let lowest = least.iter().flatten().copied().fold(1.0, f64::min);
    let begin = BEGINS.into_iter().find(|&begin| begin <= lowest);
    let begin = begin.unwrap_or(0.0);
    let level = |value: f64| {
        let level = (value - begin) / (1.0 - begin) * LEVELS.len() as f64;
        LEVELS[(level as usize).min(LEVELS.len() - 1)]
    };
    let line = least.into_iter().map(|value| value.map_or(' ', level));
    Spark {
        line: line.collect(),
        begin,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_when_drawn_show_the_least_of_each_column() {
        let points = [
            (0.0, 1.0),
            (1.0, 0.5),
            (2.0, 0.75),
            (9.9, 1.0),
            (-1.0, 0.0),
            (11.0, 0.0),
        ];
        let spark = draw(points.into_iter(), 0.0, 10.0, 5);
        assert_eq!(
            spark,
            Spark {
                line: "▁▅  █".to_owned(),
                begin: 0.5
            }
        );
        let high = draw([(0.0, 0.95)].into_iter(), 0.0, 1.0, 1);
        assert_eq!(high.begin, 0.9);
    }

    #[test]
    fn points_when_they_make_no_sense_are_drawn_all_the_same() {
        let points = [
            (0.0, -5.0),
            (0.5, f64::INFINITY),
            (f64::NAN, 0.5),
            (1.0, 1e300),
        ];
        let spark = draw(points.into_iter(), 0.0, 1.0, 3);
        assert_eq!(spark.line.chars().count(), 3);
        assert_eq!(draw([(0.0, 0.5)].into_iter(), 0.0, 0.0, 2).line, "▁ ");
        assert_eq!(draw([(0.0, 0.5)].into_iter(), 0.0, 1.0, 0).line, "");
    }
}
