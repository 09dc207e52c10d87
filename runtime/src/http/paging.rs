//! Pages of lists: how many rows a client asks for, and whether there are more. Imports nothing but `http::error`.

use super::error::Problem;

/// How many rows a page has.
#[derive(Debug, Clone, Copy)]
pub struct Page(u16);

impl Page {
    /// What the client asked for, within its bounds.
    pub fn of(asked: Option<u16>, default: u16, most: u16) -> Result<Self, Problem> {
        match asked.unwrap_or(default) {
            limit if (1..=most).contains(&limit) => Ok(Self(limit)),
            _ => Err(Problem::bad_request(format!("limit must be 1 to {most}."))),
        }
    }

    /// How many rows to read: one more tells whether there is a next page.
    pub fn to_read(self) -> i64 {
        i64::from(self.0) + 1
    }

    /// Leaves the rows of the page; gives back the last of them when more follow.
    pub fn cut<T>(self, rows: &mut Vec<T>) -> Option<&T> {
        let more = rows.len() > usize::from(self.0);
        rows.truncate(usize::from(self.0));
        rows.last().filter(|_| more)
    }

    /// The same, read `at_a_time` rows at a time, until what they weigh together reaches `most`.
    pub fn in_parts<T>(self, at_a_time: i64, most: usize) -> Parts<T> {
        Parts { page: self, at_a_time, most, rows: Vec::new(), left: self.to_read(), weight: 0 }
    }
}

/// A page that ends before its limit where its rows are long: all of them in memory would be too much.
#[derive(Debug)]
pub struct Parts<T> {
    page: Page,
    at_a_time: i64,
    most: usize,
    rows: Vec<T>,
    left: i64,
    weight: usize,
}

impl<T> Parts<T> {
    /// How many rows to read now, if any.
    pub fn to_read(&self) -> Option<i64> {
        (self.left > 0 && self.weight < self.most).then(|| self.left.min(self.at_a_time))
    }

    /// Takes what was read when so many were asked for; gives back the last row so far, behind which the next ones are.
    pub fn add(&mut self, rows: Vec<T>, asked: i64, weight: impl Fn(&T) -> usize) -> Option<&T> {
        self.left = if i64::try_from(rows.len()) == Ok(asked) { self.left - asked } else { 0 };
        self.weight += rows.iter().map(weight).sum::<usize>();
        self.rows.extend(rows);
        self.rows.last()
    }

    /// The rows of the page, and the place of the last one when more may follow.
    pub fn end<P>(mut self, place: impl Fn(&T) -> P) -> (Vec<T>, Option<P>) {
        let last = if self.left > 0 { self.rows.last() } else { self.page.cut(&mut self.rows) };
        let last = last.map(place);
        (self.rows, last)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_last_row_is_the_place_to_go_on_from_and_only_when_more_follow() {
        let page = Page::of(None, 2, 10).unwrap();
        assert_eq!(page.to_read(), 3);
        let (mut more, mut all) = (vec![1, 2, 3], vec![1, 2]);
        assert_eq!((page.cut(&mut more).copied(), page.cut(&mut all)), (Some(2), None));
        assert_eq!((more, all), (vec![1, 2], vec![1, 2]));
        assert_eq!(page.cut(&mut Vec::<u8>::new()), None);
    }

    #[test]
    fn a_page_in_parts_ends_at_its_limit_or_with_its_rows_or_when_they_weigh_too_much() {
        let read = |limit, rows: usize, most| {
            let mut parts = Page::of(Some(limit), 2, 10).unwrap().in_parts(2, most);
            let (mut asked, mut at) = (Vec::new(), 0);
            while let Some(now) = parts.to_read() {
                asked.push(now);
                let more = (at..rows).take(usize::try_from(now).unwrap()).collect();
                at = parts.add(more, now, |_| 10).map_or(at, |last| last + 1);
            }
            let (rows, last) = parts.end(|row| *row);
            (asked, rows.len(), last)
        };
        assert_eq!(read(4, 9, 1000), (vec![2, 2, 1], 4, Some(3)));
        assert_eq!(read(4, 4, 1000), (vec![2, 2, 1], 4, None));
        assert_eq!(read(4, 3, 1000), (vec![2, 2], 3, None));
        assert_eq!(read(4, 0, 1000), (vec![2], 0, None));
        assert_eq!(read(4, 9, 15), (vec![2], 2, Some(1)));
    }

    #[test]
    fn a_limit_out_of_bounds_is_refused() {
        for limit in [0, 11] {
            assert!(Page::of(Some(limit), 2, 10).is_err());
        }
        assert!(Page::of(Some(10), 2, 10).is_ok());
    }
}
