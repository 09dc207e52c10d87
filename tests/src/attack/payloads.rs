//! Texts that do harm where they are put into SQL, a header, a path, a template, a URL, a shell or a log line.

use std::net::SocketAddr;

/// A text and what it attacks.
#[derive(Clone, Debug)]
pub struct Payload {
    /// What it attacks, for messages.
    pub aim: &'static str,
    /// The text.
    pub text: String,
}

const FIXED: &[(&str, &[&str])] = &[
    (
        "SQL",
        &[
            "' OR '1'='1",
            "'; DROP TABLE sessions; --",
            "\") UNION SELECT slug FROM organizations --",
            "\\'; SELECT pg_sleep(30); --",
            "1); SELECT set_config('role','postgres',true); --",
            "$1",
            "%",
            "_",
            "$$; reset role; $$",
            "E'\\x00'",
            "\u{2019} OR 1=1",
        ],
    ),
    (
        "headers",
        &[
            "x\r\nX-Injected: yes",
            "x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "x\nSet-Cookie: a=b",
            "x\rX-Injected: yes",
            "x\u{2028}X-Injected: yes",
            "chunked",
            "text/html",
        ],
    ),
    (
        "paths",
        &[
            "../../../../etc/passwd",
            "..\\..\\windows\\win.ini",
            "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
            "..%252f..%252f",
            "%c0%ae%c0%ae%c0%af",
            "/etc/passwd",
            "file:///etc/passwd",
            "a/../../internal/claim",
            "．．／．．／",
            "..;/",
            ".",
            "..",
            "%00",
            "\0",
            "a\0.txt",
            "\u{2215}etc",
        ],
    ),
    (
        "templates and shells",
        &[
            "{{ 7*7 }}",
            "{{ self.__init__.__globals__ }}",
            "{% include '/etc/passwd' %}",
            "${7*7}",
            "${jndi:ldap://127.0.0.1/a}",
            "$(id)",
            "`id`",
            "; id",
            "| id",
            "&& id",
            "$(AGENTAPI_SESSION_PUBLIC_KEY)",
            "<%= 7*7 %>",
            "#{7*7}",
            "%n%s%x",
            "{0}",
        ],
    ),
    (
        "URLs",
        &[
            "http://169.254.169.254/latest/meta-data/",
            "http://[fd00:ec2::254]/",
            "http://metadata.google.internal/",
            "gopher://127.0.0.1:5432/_x",
            "https://kubernetes.default.svc/api/v1/secrets",
            "http://127.0.0.1:5432/",
            "//evil.example/",
            "javascript:alert(1)",
        ],
    ),
    (
        "logs and terminals",
        &[
            "x\n{\"timestamp\":\"2026-01-01T00:00:00Z\",\"level\":\"ERROR\",\"target\":\"forged\"}",
            "\u{1b}[2J\u{1b}[31mred",
            "\u{9b}31m",
            "a\u{8}\u{8}b",
            "\",\"level\":\"ERROR\",\"x\":\"",
        ],
    ),
    (
        "people",
        &[
            "<script>alert(1)</script>",
            "\u{202e}gpj.exe",
            "\u{200b}",
            "admin\u{200b}",
            "\u{feff}",
            "ﬁ",
            "İ",
            "\u{10ffff}",
            "\u{e000}",
            "=1+1",
        ],
    ),
    ("types", &["", " ", "null", "true", "[]", "{}", "-1", "0", "1e999", "9223372036854775808", "NaN", "undefined"]),
];

/// All payloads. `canary` is a listener that nobody has a reason to connect to.
pub fn all(canary: SocketAddr) -> Vec<Payload> {
    let fixed = FIXED.iter().flat_map(|(aim, texts)| texts.iter().map(|text| ((*aim), (*text).to_owned())));
    let own = [
        ("URLs", format!("http://{canary}/x")),
        ("URLs", format!("http://user@{canary}/")),
        ("URLs", format!("http://[::ffff:127.0.0.1]:{}/", canary.port())),
        ("size", "A".repeat(5000)),
        ("size", "字".repeat(3000)),
        ("size", "%".repeat(2000)),
    ];
    fixed.chain(own).map(|(aim, text)| Payload { aim, text }).collect()
}
