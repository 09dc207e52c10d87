//! The page of a consent in a real Chromium, with keys only and as a screen reader hears it: agreed, refused, and the
//! provider's window closed.

use agentapi_tests::oauth::World;
use agentapi_tests::oauth::chromium::{Chromium, Window};
use anyhow::{Context, Result};
use serde_json::{Value, json};

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");
/// Where the focus is.
const FOCUS: &str = "document.activeElement.id";

async fn shown(browser: &mut Chromium, world: &World, name: &str) -> Result<Window> {
    let api = world.replica.api(Some(&world.acme.alice))?;
    let connection = world.connection(&world.acme, name, &json!({"clientSecretRef": "none"})).await?;
    let body = json!({"connection": connection, "redirect": "https://app.test/settings"});
    let begun = api.post("/v1/oauth/init", &body).await?.expect(201)?;
    let window = browser.open(begun["authorizationUrl"].as_str().context("no address")?).await?;
    // The page's script runs once all of the page is there.
    browser.wait(&window, "document.readyState === 'complete' && !!document.getElementById('go')").await?;
    Ok(window)
}

/// Presses the page's button with keys; gives back the provider's window at its login.
async fn opened(browser: &mut Chromium, window: &Window) -> Result<Window> {
    for _ in 0..5 {
        if browser.evaluate(window, FOCUS).await? == "go" {
            break;
        }
        browser.press(window, "Tab").await?;
    }
    assert_eq!(browser.evaluate(window, FOCUS).await?, "go");
    browser.press(window, "Enter").await?;
    let popup = browser.popup(window).await?;
    browser.wait(&popup, "!!document.querySelector('input[name=login]')").await?;
    Ok(popup)
}

async fn said(browser: &mut Chromium, window: &Window, kind: &str) -> Result<String> {
    browser.wait(window, &format!("document.getElementById('status').dataset.kind === '{kind}'")).await?;
    let text = browser.evaluate(window, "document.getElementById('status').textContent").await?;
    Ok(text.as_str().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_keys_only_a_user_agrees_and_the_window_goes_by_itself() -> Result<()> {
    let world = World::start(SESSION_POD).await?;
    let mut browser = Chromium::start().await?;
    let window = shown(&mut browser, &world, "github").await?;
    let heard = browser.spoken(&window).await?;
    let host = world.oidc.gate.address.ip().to_string();
    for wanted in ["heading: Connect github", &format!("button: Continue to {host}"), "status: "] {
        assert!(heard.iter().any(|it| it == wanted), "no {wanted:?} in {heard:?}");
    }
    let about = browser.evaluate(&window, "document.getElementById('about').textContent").await?;
    for wanted in [&world.acme.organization.slug, &world.acme.organization.alice.subject] {
        assert!(about.as_str().is_some_and(|text| text.contains(wanted.as_str())), "{about}");
    }
    let popup = opened(&mut browser, &window).await?;
    browser.evaluate(&popup, "document.querySelector('input[name=login]').value = 'acme-alice'; document.querySelector('input[name=password]').value = 'x'; document.querySelector('form').submit(); true").await?;
    browser.wait(&popup, "!!document.querySelector('input[name=prompt][value=consent]')").await?;
    browser.evaluate(&popup, "document.querySelector('form').submit(); true").await?;

    assert_eq!(said(&mut browser, &window, "connected").await?, "Connected.");
    assert_eq!(browser.evaluate(&window, FOCUS).await?, "return", "keyboards go on at the way back");
    assert_eq!(browser.evaluate(&window, "document.getElementById('return').href").await?, "https://app.test/settings");
    assert_eq!(browser.evaluate(&window, "document.getElementById('go').hidden").await?, true);
    for _ in 0..1200 {
        if browser.others(&window).await?.is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(browser.others(&window).await?.is_empty(), "the provider's window is still there");
    assert_eq!(world.value("select count(*)::text from mcp_oauth_tokens").await?.as_deref(), Some("1"));
    browser.quit().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_said_and_nothing_is_kept() -> Result<()> {
    let world = World::start(SESSION_POD).await?;
    let mut browser = Chromium::start().await?;
    let window = shown(&mut browser, &world, "github").await?;
    let popup = opened(&mut browser, &window).await?;
    browser.evaluate(&popup, "location.assign(location.pathname + '/abort'); true").await?;
    let text = said(&mut browser, &window, "denied").await?;
    assert!(text.starts_with("Consent was not given.") && text.contains("begin again"), "{text}");
    assert_eq!(browser.evaluate(&window, FOCUS).await?, "status", "screen readers go to what is said");
    let live = "document.getElementById('status').getAttribute('aria-live')";
    assert_eq!(browser.evaluate(&window, live).await?, "polite");
    assert_eq!(world.value("select count(*)::text from mcp_oauth_tokens").await?.as_deref(), Some("0"));
    browser.quit().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_window_is_noticed_and_can_be_opened_again() -> Result<()> {
    let world = World::start(SESSION_POD).await?;
    let mut browser = Chromium::start().await?;
    let window = shown(&mut browser, &world, "github").await?;
    let popup = opened(&mut browser, &window).await?;
    assert_eq!(browser.evaluate(&window, "document.getElementById('go').getAttribute('aria-disabled')").await?, "true");
    browser.close(&popup).await?;
    let text = said(&mut browser, &window, "closed").await?;
    assert!(text.contains("was closed before you decided"), "{text}");
    assert_eq!(browser.evaluate(&window, FOCUS).await?, "go");
    let again = opened(&mut browser, &window).await?;
    assert_ne!(again, popup);
    // Nothing ran that the policy does not allow, and nothing of the page is framed.
    let inline = "(() => { const s = document.createElement('script'); s.textContent = 'window.pwned = 1'; document.body.append(s); return window.pwned === undefined; })()";
    assert_eq!(browser.evaluate(&window, inline).await?, Value::Bool(true));
    browser.quit().await
}
