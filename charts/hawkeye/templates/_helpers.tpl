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
