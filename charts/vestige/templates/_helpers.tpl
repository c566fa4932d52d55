{{- define "vestige.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "vestige.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "vestige.selectorLabels" -}}
app.kubernetes.io/name: {{ include "vestige.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "vestige.labels" -}}
{{ include "vestige.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: vestige
{{- end }}

{{- define "vestige.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default .appVersion .image.tag }}
{{- end }}
{{- end }}

{{- define "vestige.secretName" -}}
{{- default (printf "%s-auth" (include "vestige.fullname" .)) .Values.auth.existingSecret }}
{{- end }}

{{- define "vestige.claimName" -}}
{{- default (include "vestige.fullname" .) .Values.persistence.existingClaim }}
{{- end }}

{{/* Refuses what could not work, each with the sentence that says the way out. */}}
{{- define "vestige.validate" -}}
{{- if not (or .Values.auth.token .Values.auth.existingSecret) }}
{{- if .Release.IsUpgrade }}
{{- fail "No token: helm upgrade forgets the values of the installation unless it is told to keep them. Add --reset-then-reuse-values, or give auth.token or auth.existingSecret again." }}
{{- end }}
{{- fail "No token: set auth.token to 16 characters or more (--set auth.token=\"$(openssl rand -hex 32)\"), or set auth.existingSecret to the name of a Secret that holds one." }}
{{- end }}
{{- if and .Values.auth.token (not .Values.auth.existingSecret) (lt (len (trim .Values.auth.token)) 16) }}
{{- fail "auth.token is shorter than 16 characters: take one that cannot be guessed, such as the output of openssl rand -hex 32." }}
{{- end }}
{{- if ne (int .Values.replicaCount) 1 }}
{{- fail "replicaCount must be 1: one Vestige process owns the SQLite file, and two pods on it would damage the memory." }}
{{- end }}
{{- if le (int .Values.terminationGracePeriodSeconds) (int .Values.bridge.drainSeconds) }}
{{- fail "terminationGracePeriodSeconds must be larger than bridge.drainSeconds: the bridge drains first, then Vestige ends." }}
{{- end }}
{{- range $object := list "podMonitor" "alerts" "dashboard" }}
{{- if and (index $.Values.metrics $object).enabled (not $.Values.metrics.enabled) }}
{{- fail (printf "metrics.%s.enabled needs metrics.enabled: without it nobody can reach the metrics." $object) }}
{{- end }}
{{- end }}
{{- range .Values.vestige.extraEnv }}
{{- if eq .name "VESTIGE_AUTH_TOKEN" }}
{{- fail "vestige.extraEnv must not set VESTIGE_AUTH_TOKEN: Vestige would read the bridge's token as its own. The bridge has it from auth." }}
{{- end }}
{{- end }}
{{- end }}
