{{/* Registries that the operator may ask about images: the values', or the one that the release's images come from. */}}
{{- define "hawkeye.verifyRegistries" -}}
{{- if .Values.imageVerification.enabled -}}
{{- join "," (default (list .Values.images.registry) .Values.imageVerification.registries) -}}
{{- end -}}
{{- end -}}

{{/* Environment of the operator. Without registries it asks nobody. */}}
{{- define "hawkeye.verifyEnv" -}}
{{- with include "hawkeye.verifyRegistries" . }}
- name: HAWKEYE_VERIFY_REGISTRIES
  value: {{ . | quote }}
{{- with $.Values.imageVerification.insecureRegistries }}
- name: HAWKEYE_VERIFY_INSECURE_REGISTRIES
  value: {{ join "," . | quote }}
{{- end }}
{{- if $.Values.imageVerification.pullSecrets }}
{{- $secrets := list }}
{{- range $.Values.imageVerification.pullSecrets }}
{{- $secrets = append $secrets (printf "%s/%s" .namespace .name) }}
{{- end }}
- name: HAWKEYE_VERIFY_PULL_SECRETS
  value: {{ join "," $secrets | quote }}
{{- end }}
{{- with $.Values.imageVerification.caCertificates }}
- name: HAWKEYE_VERIFY_CA
  value: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}
