//! `PageRank` on a graph with hubs.

use tier_core::{random::Random, sample::AccessKind};

use super::{
    Plan, Scale,
    alias::Alias,
    generator::{LINES, Pattern, line_in},
    scan::Sweep,
};

/// Accesses of a cycle: 16 lines of edges with 4 gathers each, and one line of new ranks.
const CYCLE: u32 = 16 * GROUP + 1;
/// Accesses of a line of edges and its gathers.
const GROUP: u32 = 5;
/// Exponent of Zipf's law for a vertex's use: 1 / (γ − 1) for degrees by a power law with γ = 2.25, as
/// those of the web and of social networks.
const EXPONENT: f64 = 0.8;

struct PageRank {
    edges: Sweep,
    /// Where the new ranks begin, in bytes.
    ranks_at: u64,
    ranks: Sweep,
    /// The first page of what vertices contribute.
    gathered_first: u32,
    /// Popularity of these pages.
    gathered: Alias,
    turn: u32,
}

impl Pattern for PageRank {
    #[inline]
    fn next(&mut self, random: &mut Random) -> (u64, AccessKind) {
        let turn = self.turn;
        self.turn = if turn + 1 == CYCLE { 0 } else { turn + 1 };
        if turn + 1 == CYCLE {
            return (self.ranks_at + self.ranks.next(), AccessKind::Store);
        }
        if turn.is_multiple_of(GROUP) {
            return (self.edges.next(), AccessKind::Load);
        }
        let page = self.gathered_first + self.gathered.pick(random.draw());
        (line_in(page, random.draw()), AccessKind::Load)
    }
}

/// `PageRank` by pulling, as in the GAP benchmark suite (Beamer, Asanović, Patterson, 2015): edges are
/// streamed, for each a vertex's contribution is gathered, and new ranks are written one after the
/// other. Edges fill 14/16 of memory, ranks 1/16, contributions 1/16, at the end, where a program that
/// loads its graph first puts them. A line holds 16 edges; of their gathers a quarter miss the CPU's
/// caches. A vertex is gathered as often as it has edges: by Zipf's law, popular vertices scattered over
/// the pages, 64 lines in each.
pub(super) fn pagerank(scale: &Scale, random: &mut Random) -> Plan {
    let (ranks_first, gathered_first) = (scale.share(14, 16), scale.share(15, 16));
    let gathered_pages = scale.pages - gathered_first;
    Plan::steady(PageRank {
        edges: Sweep::by_lines(ranks_first),
        ranks_at: line_in(ranks_first, 0),
        ranks: Sweep::by_lines(gathered_first - ranks_first),
        gathered_first,
        gathered: Alias::of_scattered(gathered_pages, LINES, EXPONENT, random),
        turn: 0,
    })
}
