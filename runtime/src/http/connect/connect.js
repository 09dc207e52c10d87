const main = document.querySelector('main');
const [button, status, next] = ['go', 'status', 'next'].map((id) => document.getElementById(id));
const state = new URLSearchParams(location.search).get('state');
let popup = null;
let watch = null;
let over = false;

// Moving the focus makes screen readers say it, and keyboards go on from there.
const say = (kind, text) => {
  status.dataset.kind = kind;
  status.textContent = text;
  status.focus();
};

const stop = () => {
  clearInterval(watch);
  popup = null;
  button.setAttribute('aria-disabled', 'false');
};

const finish = ({ kind, text }) => {
  if (over) return;
  over = true;
  popup?.close();
  stop();
  button.hidden = true;
  say(kind, kind === 'connected' ? 'Connected.' : `${text} To try once more, begin again where you came from.`);
  if (main.dataset.return) {
    next.hidden = false;
    if (kind === 'connected') document.getElementById('return').focus();
  }
};

// The provider may cut the tie between the two windows; same-origin pages still hear each other here.
new BroadcastChannel(main.dataset.channel).onmessage = (event) => finish(event.data);

button.addEventListener('click', async () => {
  if (button.getAttribute('aria-disabled') === 'true') {
    popup?.focus();
    return;
  }
  // Now and not after the answer: browsers open windows for clicks only.
  popup = window.open('', 'agentapi-oauth', 'popup,width=520,height=720');
  if (!popup) {
    say('blocked', 'The browser did not open a window. Allow pop-ups for this page, then press the button again.');
    return;
  }
  button.setAttribute('aria-disabled', 'true');
  status.dataset.kind = 'open';
  status.textContent = 'Go on in the window that has opened.';
  try {
    const answer = await fetch(location.pathname, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ state }),
    });
    const body = await answer.json();
    if (!answer.ok) {
      finish({ kind: 'failed', text: body.detail });
      return;
    }
    popup.location.replace(body.authorizationUrl);
  } catch {
    popup?.close();
    stop();
    say('failed', 'The server does not answer. Press the button to try again.');
    return;
  }
  watch = setInterval(() => {
    if (over || !popup?.closed) return;
    stop();
    say('closed', 'The window was closed before you decided. Press the button to open it again.');
    button.focus();
  }, 300);
});
