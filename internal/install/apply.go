package install

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/spiderpool/v2beta1"
)

// fieldOwner is who the API server says wrote our fields (server-side apply).
const fieldOwner = client.FieldOwner("ropeway-install")

// Progress takes one line for the person who waits.
type Progress func(format string, args ...any)

// poll is how often a cluster is asked while waiting. It is bounded by the
// context that the caller gives.
const poll = 500 * time.Millisecond

// repeat is how often a line is printed that says the same again.
const repeat = 10 * time.Second

// Apply makes the cluster hold the manifest: CRDs, then, when they are
// established, the rest in order. What an earlier installation made is changed
// in place; something of that name that is not ours stops it before anything
// is written. The cleaner of an interrupted uninstall is ended first.
func Apply(ctx context.Context, c client.Client, m Manifest, say Progress) error {
	if err := refuseForeign(ctx, c, m); err != nil {
		return err
	}
	if err := endCleaner(ctx, c, say); err != nil {
		return err
	}
	for _, crd := range m.CRDs {
		if keep, err := isAnothers(ctx, c, crd); err != nil {
			return err
		} else if keep {
			say("%s is another product's, and stays as it is", describe(crd))
			continue
		}
		if err := applyOne(ctx, c, crd, say); err != nil {
			return err
		}
	}
	for _, crd := range m.CRDs {
		if err := waitEstablished(ctx, c, crd.GetName()); err != nil {
			return err
		}
	}
	for _, obj := range m.Objects {
		if err := applyOne(ctx, c, obj, say); err != nil {
			return err
		}
	}
	return nil
}

// isAnothers reports whether a kind of another product's API is there already:
// such a CRD is used as it is, neither replaced nor, later, deleted.
func isAnothers(ctx context.Context, c client.Client, crd *unstructured.Unstructured) (bool, error) {
	if !strings.HasSuffix(crd.GetName(), "."+v2beta1.GroupVersion.Group) {
		return false, nil
	}
	var have apiextensionsv1.CustomResourceDefinition
	err := c.Get(ctx, client.ObjectKey{Name: crd.GetName()}, &have)
	if absent(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", describe(crd), err)
	}
	return !ours(&have), nil
}

// describe names an object as kubectl does.
func describe(obj client.Object) string {
	kind := obj.GetObjectKind().GroupVersionKind().Kind
	if obj.GetNamespace() == "" {
		return kind + " " + obj.GetName()
	}
	return kind + " " + obj.GetNamespace() + "/" + obj.GetName()
}

// refuseForeign looks for objects that bear our names but not our label. The
// ClusterNetwork is a person's own: it need not bear it.
func refuseForeign(ctx context.Context, c client.Client, m Manifest) error {
	var errs []error
	for _, want := range append(append([]*unstructured.Unstructured{}, m.CRDs...), m.Objects...) {
		if keep, err := isAnothers(ctx, c, want); keep || err != nil {
			errs = append(errs, err)
			continue
		}
		have := &unstructured.Unstructured{}
		have.SetGroupVersionKind(want.GroupVersionKind())
		err := c.Get(ctx, client.ObjectKeyFromObject(want), have)
		switch {
		case absent(err):
		case err != nil:
			errs = append(errs, fmt.Errorf("look at %s: %w", describe(want), err))
		case want.GetKind() != "ClusterNetwork" && have.GetLabels()[LabelName] != ProductName:
			errs = append(errs, fmt.Errorf("%s is there, and no installation of Ropeway's made it: it is not overwritten; if it is a left-over, delete it", describe(want)))
		}
	}
	return errors.Join(errs...)
}

func applyOne(ctx context.Context, c client.Client, obj *unstructured.Unstructured, say Progress) error {
	obj = obj.DeepCopy()
	err := retry(ctx, meta.IsNoMatchError, func() error {
		return c.Apply(ctx, client.ApplyConfigurationFromUnstructured(obj.DeepCopy()), fieldOwner, client.ForceOwnership)
	})
	if err != nil {
		return fmt.Errorf("apply %s: %w", describe(obj), err)
	}
	say("applied %s", describe(obj))
	return nil
}

// retry repeats what fails with an error that passes by itself, for at most a
// quarter of a minute: a kind is not always known the moment that its CRD is
// established.
func retry(ctx context.Context, passes func(error) bool, do func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for {
		err := do()
		if err == nil || !passes(err) {
			return err
		}
		if pause(ctx, poll) != nil {
			return err
		}
	}
}

// pause waits, or returns the context's error.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func waitEstablished(ctx context.Context, c client.Client, name string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	last := "the API server has not looked at it yet"
	for {
		var crd apiextensionsv1.CustomResourceDefinition
		if err := c.Get(ctx, client.ObjectKey{Name: name}, &crd); err != nil {
			last = err.Error()
		}
		for _, cond := range crd.Status.Conditions {
			switch {
			case cond.Type == apiextensionsv1.Established && cond.Status == apiextensionsv1.ConditionTrue:
				return nil
			case cond.Status == apiextensionsv1.ConditionFalse:
				last = fmt.Sprintf("%s: %s", cond.Reason, cond.Message)
			}
		}
		if pause(ctx, poll/5) != nil {
			return fmt.Errorf("the CustomResourceDefinition %s is not established after a minute: %s", name, last)
		}
	}
}
