const { channel, kind } = document.querySelector('main').dataset;
const status = document.getElementById('status');
status.focus();
if (channel) {
  const other = new BroadcastChannel(channel);
  other.postMessage({ kind, text: status.textContent });
  // The page that opened this window says the rest.
  if (window.opener) setTimeout(() => window.close(), 200);
}
