{{/* Prefix of every object's name: the release's name, with the chart's name added unless it is in it. */}}
{{- define "hawkeye.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "hawkeye.operatorName" -}}
{{- printf "%s-operator" (include "hawkeye.fullname" .) -}}
{{- end -}}

{{- define "hawkeye.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "hawkeye.operatorName" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "hawkeye.selectorLabels" -}}
app.kubernetes.io/name: hawkeye-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "hawkeye.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: hawkeye
{{- end -}}

{{- define "hawkeye.labels" -}}
{{ include "hawkeye.selectorLabels" . }}
{{ include "hawkeye.commonLabels" . }}
{{- end -}}

{{/* Image references: a full one from the values, or the release's. */}}
{{- define "hawkeye.operatorImage" -}}
{{- default (printf "%s/hawkeye-operator:%s" .Values.images.registry .Chart.AppVersion) .Values.images.operator -}}
{{- end -}}

{{/* Takes {root, variant}. */}}
{{- define "hawkeye.inferenceImage" -}}
{{- default (printf "%s/hawkeye-inference:%s-%s" .root.Values.images.registry .root.Chart.AppVersion .variant) (get .root.Values.images .variant) -}}
{{- end -}}

{{/*
Merges `over` into `into`, in place: maps deeply, anything else replaced, null removes the key.
Sprig's mergeOverwrite is no help here: it skips values that are false, 0 or "".
*/}}
{{- define "hawkeye.mergeInto" -}}
{{- $into := .into -}}
{{- range $key, $value := .over -}}
{{- if and (kindIs "map" $value) (kindIs "map" (get $into $key)) -}}
{{- include "hawkeye.mergeInto" (dict "into" (get $into $key) "over" $value) -}}
{{- else if kindIs "invalid" $value -}}
{{- $_ := unset $into $key -}}
{{- else -}}
{{- $_ := set $into $key $value -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Milliseconds of a duration, whose form the schema has checked: 1m30s500ms. */}}
{{- define "hawkeye.milliseconds" -}}
{{- $form := "^(?:([0-9]+)m)?(?:([0-9]+)s)?(?:([0-9]+)ms)?$" -}}
{{- $minutes := regexReplaceAll $form . "${1}" | int64 -}}
{{- $seconds := regexReplaceAll $form . "${2}" | int64 -}}
{{- $milliseconds := regexReplaceAll $form . "${3}" | int64 -}}
{{- add (mul $minutes 60000) (mul $seconds 1000) $milliseconds -}}
{{- end -}}

{{/* Fails where the durations of the election contradict each other; the operator itself would refuse to start. */}}
{{- define "hawkeye.checkElection" -}}
{{- $election := .Values.leaderElection -}}
{{- $lease := include "hawkeye.milliseconds" $election.leaseDuration | int64 -}}
{{- $deadline := include "hawkeye.milliseconds" $election.renewDeadline | int64 -}}
{{- $period := include "hawkeye.milliseconds" $election.retryPeriod | int64 -}}
{{- if or (lt $lease 1000) (gt $lease 3600000) (ne (mod $lease 1000) 0) -}}
{{- fail (printf "leaderElection.leaseDuration must be whole seconds, 1s to 60m, not %s" $election.leaseDuration) -}}
{{- end -}}
{{- if ge $deadline $lease -}}
{{- fail (printf "leaderElection.renewDeadline (%s) must be shorter than leaseDuration (%s): a leader has to stop before another one may start" $election.renewDeadline $election.leaseDuration) -}}
{{- end -}}
{{- if or (eq $period 0) (gt (mul $period 2) $deadline) -}}
{{- fail (printf "leaderElection.retryPeriod (%s) must be above 0 and at most half of renewDeadline (%s): a failed renewal has to be tried again in time" $election.retryPeriod $election.renewDeadline) -}}
{{- end -}}
{{- end -}}
