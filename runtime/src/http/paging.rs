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
    fn a_limit_out_of_bounds_is_refused() {
        for limit in [0, 11] {
            assert!(Page::of(Some(limit), 2, 10).is_err());
        }
        assert!(Page::of(Some(10), 2, 10).is_ok());
    }
}
