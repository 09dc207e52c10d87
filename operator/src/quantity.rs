//! Amounts as Kubernetes writes them (`500m`, `1.5Gi`, `2e3`), compared and added. Pure.
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A thousandth of the unit, so that `1m` is a whole number.
pub type Milli = i128;

const SUFFIXES: [(&str, Milli); 13] = [
    ("Ki", 1000 << 10),
    ("Mi", 1000 << 20),
    ("Gi", 1000 << 30),
    ("Ti", 1000 << 40),
    ("Pi", 1000 << 50),
    ("Ei", 1000 << 60),
    ("k", 1_000_000),
    ("M", 1_000_000_000),
    ("G", 1_000_000_000_000),
    ("T", 1_000_000_000_000_000),
    ("P", 1_000_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000_000),
    ("m", 1),
];

/// The amount; `None` when the text is none. What is finer than a thousandth is rounded up, as Kubernetes does.
pub fn parse(quantity: &Quantity) -> Option<Milli> {
    let text = quantity.0.trim();
    let (number, unit) = match SUFFIXES.iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit))) {
        Some(found) => found,
        None => match text.split_once(['e', 'E']) {
            Some((number, exponent)) => {
                let exponent: u32 = exponent.strip_prefix('+').unwrap_or(exponent).parse().ok()?;
                (number, 10_i128.checked_pow(exponent)?.checked_mul(1000)?)
            }
            None => (text, 1000),
        },
    };
    let (sign, number) = match number.strip_prefix('-') {
        Some(number) => (-1, number),
        None => (1, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || digits.len() > 24 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let scaled = digits.parse::<i128>().ok()?.checked_mul(unit)?;
    Some(sign * (scaled / scale + i128::from(scaled % scale != 0)))
}

/// The shortest plain way to write the amount.
pub fn write(amount: Milli) -> Quantity {
    if amount % 1000 != 0 {
        return Quantity(format!("{amount}m"));
    }
    let units = amount / 1000;
    let binary = [("Gi", 1_i128 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
    let found = binary.into_iter().find(|(_, size)| units != 0 && units % size == 0);
    Quantity(found.map_or_else(|| units.to_string(), |(suffix, size)| format!("{}{suffix}", units / size)))
}

/// `quantity` and `more`; what can't be read stays as it is, for the API server to refuse.
pub fn plus(quantity: &Quantity, more: &str) -> Quantity {
    match (parse(quantity), parse(&Quantity(more.to_owned()))) {
        (Some(amount), Some(more)) => write(amount + more),
        _ => quantity.clone(),
    }
}

/// The smaller of the two.
pub fn least(quantity: &Quantity, other: &str) -> Quantity {
    let other = Quantity(other.to_owned());
    match (parse(quantity), parse(&other)) {
        (Some(one), Some(two)) if one < two => quantity.clone(),
        _ => other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("8", Some(8000))]
    #[case("500m", Some(500))]
    #[case("1.5Gi", Some(1_610_612_736_000))]
    #[case("2e3", Some(2_000_000))]
    #[case("1E", Some(1_000_000_000_000_000_000_000))]
    #[case("-5Gi", Some(-5_368_709_120_000))]
    #[case("0.0001", Some(1))]
    #[case("", None)]
    #[case("Gi", None)]
    #[case("1,5", None)]
    #[case("1e99", None)]
    #[case("five", None)]
    fn amounts_are_read_as_kubernetes_reads_them(#[case] text: &str, #[case] amount: Option<Milli>) {
        assert_eq!(parse(&Quantity(text.into())), amount);
    }

    #[rstest]
    #[case("8", "200m", "8200m")]
    #[case("16Gi", "128Mi", "16512Mi")]
    #[case("40Gi", "1Gi", "41Gi")]
    #[case("1G", "1Gi", "2073741824")]
    fn sums_are_written_plainly(#[case] one: &str, #[case] two: &str, #[case] sum: &str) {
        assert_eq!(plus(&Quantity(one.into()), two), Quantity(sum.into()));
    }

    #[test]
    fn the_smaller_one_is_taken() {
        assert_eq!(least(&Quantity("500m".into()), "1"), Quantity("500m".into()));
        assert_eq!(least(&Quantity("2".into()), "1"), Quantity("1".into()));
        assert_eq!(least(&Quantity("what".into()), "1"), Quantity("1".into()));
    }
}
