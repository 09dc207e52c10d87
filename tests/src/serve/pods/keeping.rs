//! The folders and Secrets of pods: pods that are given up while these stay, and the pods that come after them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;

use agentapi_crds::names;
use agentapi_runtime::pods::{Pod, PodError, PodKind, PodRequest, Wake};
use anyhow::Result;
use secrecy::ExposeSecret;
use serde_json::json;
use uuid::Uuid;

use super::{Process, ProcessPods, container};

fn signal(process: &Process, name: &str) -> bool {
    Command::new("kill").args([name, &process.child.id().to_string()]).status().is_ok_and(|status| status.success())
}

impl ProcessPods {
    /// New pods have no volume that outlives them from now on, or have one again.
    pub fn keep_nothing(&self, nothing: bool) {
        self.state().keeps_nothing = nothing;
    }

    /// Pods are neither given up for a while nor woken from now on, or are again.
    pub fn set_stalled(&self, stalled: bool) {
        self.state().stalled = stalled;
    }

    /// The folder of a suspended session's pod.
    pub fn asleep(&self, pod: &str) -> Option<PathBuf> {
        self.state().asleep.contains(pod).then(|| self.folder.path().join(pod))
    }

    /// The folder of a pod.
    pub fn pod_folder(&self, pod: &str) -> PathBuf {
        self.folder.path().join(pod)
    }

    /// Ends a pod as SIGKILL does; the kubelet has not noticed yet.
    pub fn kill_9(&self, session: Uuid) -> bool {
        let mut state = self.state();
        let process = state.running.values_mut().find(|process| process.session == Some(session));
        process.is_some_and(|process| {
            let killed = process.child.kill().is_ok();
            container::end(&process.mark);
            killed
        })
    }

    /// Ends all pods, and there are no more: replicas that still go on find no cluster.
    pub(in crate::serve) fn end(&self) {
        let mut state = self.state();
        state.away = true;
        state.running.clear();
    }

    /// A pod that takes connections and answers nothing from now on.
    pub fn freeze(&self, session: Uuid) -> bool {
        let state = self.state();
        let process = state.running.values().find(|process| process.session == Some(session));
        process.is_some_and(|process| signal(process, "-STOP"))
    }

    pub(super) fn write_secret(&self, name: &str, request: &PodRequest) -> Result<()> {
        let secret = self.make_folders(name)?.join("secret");
        let env: HashMap<&str, &str> =
            request.env.iter().map(|(key, value)| (key.as_str(), value.expose_secret())).collect();
        let about = json!({"id": request.session, "organization": request.organization, "workspace": request.workspace,
                           "initialPrompt": request.prompt, "systemPrompt": request.system_prompt});
        std::fs::write(secret.join("session.json"), about.to_string())?;
        std::fs::write(secret.join("env.json"), json!(env).to_string())?;
        std::fs::write(secret.join("token"), request.token(name)?.expose_secret())?;
        Ok(())
    }

    pub(super) fn make_folders(&self, name: &str) -> Result<PathBuf> {
        let home = self.folder.path().join(name);
        for folder in ["state", "workspace", "secret", "home"] {
            std::fs::create_dir_all(home.join(folder))?;
        }
        Ok(home)
    }

    /// Ends the pods of a session as the kubelet does: SIGTERM first, so that the transcript is pushed.
    pub(super) fn give_up(&self, session: Uuid, keep: bool) -> Result<bool, PodError> {
        self.check()?;
        let mut state = self.state();
        if keep && state.stalled {
            return Err(PodError::Unavailable("not now".into()));
        }
        let (mut gone, mut ended) = (true, Vec::new());
        state.running.retain(|name, process| {
            if process.session != Some(session) {
                return true;
            }
            process.detached |= keep;
            if let Ok(None) = process.child.try_wait() {
                signal(process, "-TERM");
                gone = false;
                return true;
            }
            ended.push(name.clone());
            false
        });
        if keep {
            state.asleep.extend(ended);
        }
        Ok(gone)
    }

    /// Deletes a session's pod as somebody else does, such as who drains its node.
    pub fn evict(&self, session: Uuid) -> bool {
        let mut state = self.state();
        let process = state.running.values_mut().find(|process| process.session == Some(session));
        process.is_some_and(|process| {
            process.leaving = true;
            signal(process, "-TERM")
        })
    }

    /// Pods that somebody else has deleted are gone when their processes have ended, with what nobody has taken over.
    pub(super) fn sweep(&self) {
        let mut state = self.state();
        let ended = |process: &mut Process| process.leaving && !matches!(process.child.try_wait(), Ok(None));
        let gone: Vec<(String, bool)> = state
            .running
            .iter_mut()
            .filter_map(|(name, process)| ended(process).then(|| (name.clone(), process.detached)))
            .collect();
        for (name, detached) in gone {
            state.running.remove(&name);
            if detached {
                state.asleep.insert(name);
            }
        }
    }

    /// What is kept of a suspended session goes.
    pub(super) fn forget(&self, pod: &str) {
        if self.state().asleep.remove(pod) {
            for folder in ["state", "workspace", "secret", "home"] {
                let _ = std::fs::remove_dir_all(self.folder.path().join(pod).join(folder));
            }
        }
    }

    pub(super) fn wake_pod(&self, wake: &Wake) -> Result<Pod, PodError> {
        self.check()?;
        if let Some(pod) = self.of_session(wake.session) {
            return Ok(pod);
        }
        if let Some(why) = self.state().refuse.clone() {
            return Err(PodError::Refused(why));
        }
        if self.state().stalled {
            return Err(PodError::Unavailable("not now".into()));
        }
        if !self.state().asleep.contains(&wake.pod) {
            return Err(PodError::Refused("the suspended session's volume is gone".into()));
        }
        let secret = self.folder.path().join(&wake.pod).join("secret");
        let keys = wake.rekey.public_keys.join(",");
        let key = Some((wake.session, wake.rekey.token_key.as_str()));
        std::fs::write(secret.join("token"), wake.rekey.token.expose_secret())
            .and_then(|()| std::fs::write(secret.join(names::SESSION_SECRET_PUBLIC_KEYS), keys))
            .map_err(anyhow::Error::from)
            .and_then(|()| self.spawn(&wake.pod, (&wake.organization, &wake.workspace), PodKind::Woken, key))
            .map_err(|error| PodError::Unavailable(error.to_string()))?;
        self.state().asleep.remove(&wake.pod);
        self.of_session(wake.session).ok_or_else(|| PodError::Unavailable("it went away at once".into()))
    }
}
