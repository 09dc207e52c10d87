{{/*
Names are fixed and not derived from the release: the operator, the runtime and the tenants' RBAC refer to
them (crds/src/names.rs), and a cluster can hold only one installation, since the CRDs are cluster-wide.
*/}}
{{- define "agentapi.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{/* Labels of every object of the chart. Call with (dict "root" $ "name" "agentapi-…"). */}}
{{- define "agentapi.labels" -}}
{{ include "agentapi.selector" . }}
app.kubernetes.io/part-of: agentapi
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* Image reference. Call with (dict "root" $ "image" .Values.….image). */}}
{{- define "agentapi.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* Pod Security "restricted", and a little more. */}}
{{- define "agentapi.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}
{{- define "agentapi.containerSecurityContext" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Secret with the connection URLs: the chart's own or the one that you made. */}}
{{- define "agentapi.databaseSecret" -}}
{{ .Values.database.existingSecret | default "agentapi-postgres" }}
{{- end }}

{{/* Placement of pods. Call with (dict "root" $ "name" … "values" .Values.operator). */}}
{{- define "agentapi.placement" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Replicas prefer different nodes and never wait for one. */}}
{{- define "agentapi.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "agentapi.selector" . | nindent 8 }}
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "agentapi.selector" . | nindent 8 }}
{{- end }}

{{/* What can't work is refused at once, with what to do instead. */}}
{{- define "agentapi.check" -}}
{{- if and (not .Values.postgres.enabled) (not .Values.database.existingSecret) }}
{{- fail "postgres.enabled is false, so the chart needs your Postgres: create a Secret with the keys admin-url, operator-url and runtime-url (docs/install.md, \"External Postgres\") and set database.existingSecret to its name" }}
{{- end }}
{{- if hasPrefix "agentapi-session-signing" (.Values.database.existingSecret | default "") }}
{{- fail "database.existingSecret can't be the operator's own Secret agentapi-session-signing" }}
{{- end }}
{{- end }}

{{/* Who may connect to the chart's Postgres: tenants' read-only logins to one database and no other. */}}
{{- define "agentapi.postgresHba" -}}
local all      all                 peer
host  agentapi +agentapi_tenant_ro all scram-sha-256
host  all      +agentapi_tenant_ro all reject
host  all      all                 all scram-sha-256
{{- end }}
