//! A demand curve: expected hits a second against bytes of DRAM.

/// The most points of a curve.
pub const MAX_POINTS: usize = 64;
/// Of the points, how many steps of hits are kept apart; the others keep steps of bytes apart.
const HIT_STEPS: f64 = 31.0;
const BYTE_STEPS: f64 = 31.0;
/// Above this no count of bytes or hits is believed: `f64` holds whole numbers up to it.
const MOST: f64 = (1_u64 << 53) as f64;

/// A point of a curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Bytes of DRAM.
    pub bytes: f64,
    /// Accesses a second that DRAM serves if the hottest `bytes` bytes lie there.
    pub hits: f64,
}

/// A straight piece of a curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Piece {
    /// Where it begins, in bytes of DRAM.
    pub from: f64,
    /// Where it ends.
    pub to: f64,
    /// Hits a second for each byte.
    pub slope: f64,
}

/// Expected hits a second against bytes of DRAM: concave, through the origin, at most [`MAX_POINTS`]
/// points, flat behind its last point.
///
/// Small pages sorted by heat give a concave curve of themselves. Where pages are large, or a scan is
/// longer than DRAM, hits come in cliffs: then the curve is the convex hull from above, as in Talus
/// (Beckmann and Sanchez, HPCA 2015), and a share is rounded to whole pages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DemandCurve {
    points: Vec<Point>,
    /// Hits a second for each byte before each point: falling.
    slopes: Vec<f64>,
}

impl DemandCurve {
    /// The hull of these points, in any order: bytes of DRAM, and the hits a second that they give.
    ///
    /// Values that are no number or negative count as 0, greater ones than 2⁵³ as 2⁵³. More than
    /// [`MAX_POINTS`] points are thinned: what is left out lies within 1/31 of the hits and 1/31 of the
    /// bytes from what stays.
    #[must_use]
    pub fn of_points(points: impl IntoIterator<Item = (u64, f64)>) -> Self {
        let mut sorted: Vec<Point> = points
            .into_iter()
            .map(|(bytes, hits)| Point {
                bytes: believable(bytes as f64),
                hits: believable(hits),
            })
            .collect();
        sorted.sort_by(|a, b| a.bytes.total_cmp(&b.bytes).then(b.hits.total_cmp(&a.hits)));
        let mut hull: Vec<Point> = Vec::new();
        for point in sorted {
            let highest = hull.last().map_or(0.0, |last| last.hits);
            // What does not rise above the curve so far does not belong to it, nor do hits without
            // bytes.
            if point.hits <= highest || point.bytes <= 0.0 {
                continue;
            }
            while let Some(&last) = hull.last() {
                let before = hull.len().checked_sub(2).map(|at| hull[at]);
                let before = before.unwrap_or(ORIGIN);
                if slope(before, last) > slope(last, point) {
                    break;
                }
                hull.pop();
            }
            hull.push(point);
        }
        let points = thinned(hull);
        let before = std::iter::once(&ORIGIN).chain(&points);
        let slopes = before.zip(&points).map(|(from, to)| slope(*from, *to));
        Self {
            slopes: slopes.collect(),
            points,
        }
    }

    /// The curve of memory in parts: bytes of a part, and its accesses a second. Parts are taken by
    /// falling heat, whatever their order here.
    #[must_use]
    pub fn of_buckets(buckets: impl IntoIterator<Item = (u64, f64)>) -> Self {
        let mut sorted: Vec<(f64, f64)> = buckets
            .into_iter()
            .map(|(bytes, hits)| (believable(bytes as f64), believable(hits)))
            .filter(|&(bytes, _)| bytes > 0.0)
            .collect();
        sorted.sort_by(|a, b| (b.1 / b.0).total_cmp(&(a.1 / a.0)));
        let (mut bytes, mut hits) = (0.0, 0.0);
        Self::of_points(sorted.into_iter().map(|part| {
            bytes += part.0;
            hits += part.1;
            (bytes as u64, hits)
        }))
    }

    /// The points, by rising bytes; the origin is none of them.
    #[must_use]
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// The pieces between the points, by falling slope.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        self.pieces_from(0.0)
    }

    /// The pieces that end above so many bytes.
    pub(super) fn pieces_from(&self, bytes: f64) -> impl Iterator<Item = Piece> + '_ {
        let first = self.points.partition_point(|point| point.bytes <= bytes);
        (first..self.points.len()).map(|at| Piece {
            from: self.before(at).bytes,
            to: self.points[at].bytes,
            slope: self.slopes[at],
        })
    }

    /// The bytes for which `is_steep` holds for the slope.
    pub(super) fn bytes_while(&self, is_steep: impl Fn(f64) -> bool) -> f64 {
        self.before(self.slopes.partition_point(|&slope| is_steep(slope)))
            .bytes
    }

    /// The bytes of which each is worth at least the mark, a hit being worth `worth`, for marks that
    /// fall.
    pub(super) fn bytes_down_to(&self, marks: &[f64], worth: f64) -> impl Iterator<Item = f64> {
        let mut at = 0;
        marks.iter().map(move |mark| {
            let is_worth = |slope: &&f64| **slope * worth >= *mark;
            at += self.slopes[at..].iter().take_while(is_worth).count();
            self.before(at).bytes
        })
    }

    /// The slope of the piece at `place`, from 0 for the first to 1; `None` if there is no piece.
    pub(super) fn slope_at(&self, place: f64) -> Option<f64> {
        let at = (place * self.slopes.len() as f64) as usize;
        self.slopes.get(at).or(self.slopes.last()).copied()
    }

    /// The point before this one.
    fn before(&self, at: usize) -> Point {
        at.checked_sub(1)
            .map_or(ORIGIN, |before| self.points[before])
    }

    /// All accesses a second.
    #[must_use]
    pub fn total_hits(&self) -> f64 {
        self.points.last().map_or(0.0, |last| last.hits)
    }

    /// Hits a second with so much DRAM.
    #[must_use]
    pub fn hits_at(&self, bytes: f64) -> f64 {
        let next = self.points.partition_point(|point| point.bytes < bytes);
        let Some(slope) = self.slopes.get(next) else {
            return self.total_hits();
        };
        let from = self.before(next);
        from.hits + (bytes.max(0.0) - from.bytes) * slope
    }

    /// The least bytes that give this share of all hits, 0 to 1.
    #[must_use]
    pub fn bytes_for(&self, share: f64) -> f64 {
        let hits = self.total_hits() * believable(share).min(1.0);
        let next = self.points.partition_point(|point| point.hits < hits);
        let from = self.before(next);
        match self.slopes.get(next) {
            Some(slope) => from.bytes + (hits - from.hits) / slope,
            None => from.bytes,
        }
    }

    /// The bytes that count as used: those that have at least `idle_hits_per_byte` hits a second for
    /// each byte.
    #[must_use]
    pub fn used_bytes(&self, idle_hits_per_byte: f64) -> f64 {
        self.bytes_while(|slope| slope >= idle_hits_per_byte)
    }

    /// The curve without its coldest bytes: up to the least bytes that give this share of all hits.
    #[must_use]
    pub(crate) fn hottest(mut self, share: f64) -> Self {
        let end = Point {
            bytes: self.bytes_for(share),
            hits: self.total_hits() * share,
        };
        let before = self.points.partition_point(|point| point.bytes < end.bytes);
        if before < self.points.len() {
            self.points.truncate(before);
            self.slopes.truncate(before + 1);
            self.points.push(end);
        }
        self
    }
}

const ORIGIN: Point = Point {
    bytes: 0.0,
    hits: 0.0,
};

fn slope(from: Point, to: Point) -> f64 {
    (to.hits - from.hits) / (to.bytes - from.bytes)
}

/// A number from 0 to 2⁵³; 0 for what is none.
pub(super) fn believable(number: f64) -> f64 {
    match number > 0.0 {
        true => number.min(MOST),
        false => 0.0,
    }
}

/// At most [`MAX_POINTS`] of the points: those that are a step of hits or a step of bytes away from the
/// one before, and the last.
fn thinned(points: Vec<Point>) -> Vec<Point> {
    let Some(&last) = points.last().filter(|_| points.len() > MAX_POINTS) else {
        return points;
    };
    let mut kept = ORIGIN;
    let mut thinned: Vec<Point> = points
        .into_iter()
        .filter(|point| {
            let is_far = point.hits - kept.hits > last.hits / HIT_STEPS
                || point.bytes - kept.bytes > last.bytes / BYTE_STEPS;
            if is_far {
                kept = *point;
            }
            is_far
        })
        .collect();
    if kept != last {
        thinned.push(last);
    }
    thinned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(curve: &DemandCurve) -> Vec<(f64, f64)> {
        let points = curve.points().iter();
        points.map(|point| (point.bytes, point.hits)).collect()
    }

    #[test]
    fn curve_when_made_of_parts_takes_the_hottest_first() {
        // 10 bytes of 8 hits each, 20 of 2, 100 of none.
        let curve = DemandCurve::of_buckets([(20, 40.0), (100, 0.0), (10, 80.0)]);
        assert_eq!(points(&curve), [(10.0, 80.0), (30.0, 120.0)]);
        assert_eq!(curve.hits_at(5.0), 40.0);
        assert_eq!(curve.hits_at(20.0), 100.0);
        assert_eq!(curve.hits_at(1e9), 120.0);
        assert_eq!(curve.bytes_for(0.5), 7.5);
        assert_eq!(curve.bytes_for(1.0), 30.0);
        // Above 2 hits a byte only the first part counts.
        assert_eq!(curve.used_bytes(2.5), 10.0);
        assert_eq!(curve.used_bytes(0.0), 30.0);
        // 102 of 120 hits: all of the first part, and 11 bytes of the second.
        let hottest = curve.clone().hottest(0.85);
        assert_eq!(points(&hottest), [(10.0, 80.0), (21.0, 102.0)]);
        assert_eq!(hottest.hits_at(20.0), 100.0);
        assert_eq!(curve.clone().hottest(1.0), curve);
        assert_eq!(DemandCurve::default().hottest(0.5), DemandCurve::default());
    }

    #[test]
    fn curve_when_hits_come_in_a_cliff_is_the_hull() {
        // A cyclic scan of 100 bytes: nothing hits before all of it fits.
        let curve = DemandCurve::of_points([(50, 1.0), (99, 2.0), (100, 200.0), (150, 200.0)]);
        assert_eq!(points(&curve), [(100.0, 200.0)]);
        assert_eq!(curve.hits_at(50.0), 100.0);
    }

    #[test]
    fn curve_when_fed_nonsense_is_finite_and_concave() {
        let nonsense = [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300, 3.0];
        let all = nonsense
            .iter()
            .flat_map(|&hits| [0, 1, 4096, u64::MAX].map(|bytes| (bytes, hits)));
        let curve = DemandCurve::of_points(all.clone());
        assert_eq!(points(&curve), [(1.0, MOST)]);
        let curve = DemandCurve::of_buckets(all);
        assert!(curve.total_hits().is_finite());
        assert_eq!(DemandCurve::default().bytes_for(f64::NAN), 0.0);
        assert_eq!(DemandCurve::default().hits_at(f64::NAN), 0.0);
    }

    #[test]
    fn curve_when_it_has_many_points_is_thinned_and_hardly_changes() {
        // Zipf: the hottest part of 1,000 has 1,000 times the hits of the coldest.
        let hits = |part: u64| 1e6 / part as f64;
        let all = || (1..=1000).map(|part| (4096, hits(part)));
        let curve = DemandCurve::of_buckets(all());
        assert!(curve.points().len() <= MAX_POINTS);
        let (mut exact, mut worst) = (0.0, 0.0_f64);
        for (part, (_, hits)) in (1..).zip(all()) {
            exact += hits;
            worst = worst.max(exact - curve.hits_at(f64::from(part) * 4096.0));
        }
        assert!((curve.total_hits() - exact).abs() < 1e-6 * exact);
        assert!(worst < 0.005 * exact, "{}", worst / exact);
        let mut slopes = curve.pieces().map(|piece| piece.slope);
        let first = slopes.next().unwrap();
        slopes.fold(first, |before, slope| {
            assert!(slope < before);
            slope
        });
    }
}
